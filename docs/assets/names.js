// A name for the search's dialog, which the theme gives none.
document.querySelector(".md-search").setAttribute("aria-label", "Search")
