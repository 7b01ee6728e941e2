"""Sentences of many subjects and lengths, all different, for models with real weights."""

from __future__ import annotations

SENTENCES = tuple(
    line.strip()
    for line in """
The ferry to the island leaves twice a day, except in winter.
My grandmother kept bees behind the orchard and sold the honey at the market on Saturdays.
Please confirm the delivery address before noon.
The central bank raised its key rate by a quarter of a percentage point.
Water boils at a lower temperature on top of a mountain.
She tuned the violin, took a breath and walked onto the stage.
A spanner of thirteen millimetres fits the bolts of the front wheel.
The goalkeeper saved two penalties and was carried off the pitch by his team.
How do I reset the password of my account?
Glaciers carve valleys in the shape of a U, rivers in the shape of a V.
The recipe calls for three eggs, a cup of flour and a pinch of salt.
Our flight was delayed by fog, so we missed the connection in Frankfurt.
The court dismissed the appeal because it had been filed a day late.
Sparrows nest under the roof tiles every spring.
He was diagnosed with a mild form of anaemia and told to eat more lentils.
The museum opens at ten; admission is free for students.
Bake the bread until it sounds hollow when you knock on its base.
The train was crowded.
An index on the customer column made the query forty times faster.
Volcanic ash closed the airports of half the continent for a week.
The novel tells the story of two sisters who inherit a lighthouse.
Solar panels lose a little of their output with every degree above twenty-five.
Can I return these shoes if they do not fit?
The committee postponed its vote on the new cycle lanes until May.
Moths are drawn to the lamp on the porch.
The patient should not eat anything for eight hours before the operation.
Rents in the old town have doubled within ten years.
A good joke needs a pause in the right place.
The satellite passes over the pole every ninety-eight minutes and photographs the ice.
Sign here, and here, and put your initials on every page.
The carpenter planed the door until it closed without a sound.
Rain is expected in the west by evening, with gusts of up to eighty kilometres an hour.
The choir rehearses on Tuesdays in the hall behind the library.
Lithium is mined from salt flats in the high desert.
Did you feed the cat?
The referee stopped the match after the floodlights failed.
Every prime number above two is odd.
The shop on the corner repairs clocks, umbrellas and now and then a broken heart.
Shares of the airline fell by a tenth after the warning about its profits.
The dough must rest overnight in a cool place.
Historians still argue about who set fire to the library.
The elevator is out of order, please use the stairs.
Coral reefs bleach when the sea stays too warm for too long.
He learned to swim at the age of sixty.
The contract may be terminated by either party with three months' notice.
A fox crossed the snowy field and left a single line of tracks.
The compiler warns about variables that are never read.
Add the onions first and the garlic a minute later, or it will burn.
Two thirds of the voters stayed at home.
The bridge was built without a single nail.
Vaccination against measles is recommended from the age of eleven months.
The orchestra played the last movement much too fast.
I would like a table for four by the window at half past seven.
The spacecraft fired its engines for nine minutes to enter orbit around Mars.
Children under twelve travel free of charge when accompanied by an adult.
The thief left through the window and forgot his hat.
Wheat prices rose sharply after the drought.
Her doctoral thesis is about the migration of eels.
Turn left at the church and follow the stream as far as the mill.
The battery lasts two days if the screen is kept dark.
Nobody knows why the old king walled up the eastern gate.
Antibiotics do not help against viruses.
The striker signed a contract for four years with a club in Lisbon.
Dust the cake with sugar just before serving.
The printer on the second floor has run out of paper again.
Light takes about eight minutes from the sun to the earth.
We regret to inform you that your application has not been successful.
The glassblower turned the glowing drop into a swan.
Tickets for the concert were sold out within minutes.
The river burst its banks and flooded the cellars of the lower town.
Mathematicians proved the conjecture after three hundred and fifty years.
Leave the key under the flower pot when you go.
The tax return has to be filed by the end of July.
An owl can turn its head almost all the way round.
The dentist recommended a softer brush.
Their first album was recorded in a garage with two microphones.
The new vaccine is stored at minus seventy degrees.
The company plans to move its headquarters from Osaka to Singapore next year.
He sharpened the pencil with a kitchen knife.
The trail climbs through pine woods to a hut at two thousand metres.
The parser rejects a trailing comma after the last element of a list.
A cup of coffee costs four times as much at the airport.
The senator denied that she had ever met the lobbyist.
Bees dance to tell each other where the flowers are.
What time does the pharmacy close on Sundays?
The wall was covered in ivy and the marks of old bullets.
Cast iron keeps its heat longer than steel does.
The marathon was won by a runner whom no one had heard of.
My neighbour plays the trumpet, unfortunately.
Insulin was first given to a patient in Toronto in 1922.
The refund will reach your bank account within five working days.
Monks copied the manuscript by candlelight, mistakes included.
The crew spent the night bailing water out of the boat.
The soil here is too sandy for roses but just right for asparagus.
Mortgage applications dropped to their lowest level since the spring.
Nothing grows on the north side of the dune.
""".strip().splitlines()
)
