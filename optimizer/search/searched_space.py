"""What a search is about, without its model files: enough to predict, and to search a table."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from optimizer.cost import Demand, Price
from optimizer.errors import StorageError
from optimizer.search.study_directory import StudyDirectory, write_json
from optimizer.search_space import SearchSpace
from optimizer.workload import Workload


@dataclass(frozen=True)
class SearchedSpace:
    """What is searched, and by what it is judged.

    Attributes:
        search_space: less what the prepare phase dropped.
    """

    study: str
    search_space: SearchSpace
    workload: Workload
    price: Price
    demand: Demand


_JSON = TypeAdapter(SearchedSpace)


def keep_searched(directory: StudyDirectory, space: SearchedSpace) -> None:
    """Keep what a study searches beside it. Raises StorageError."""
    write_json(directory.searched, _JSON.dump_python(space, mode="json"))


def read_searched(directory: StudyDirectory) -> SearchedSpace:
    """What a study searches. Raises StorageError when it is not there or damaged."""
    try:
        return _JSON.validate_python(directory.read_json(directory.searched))
    except ValidationError as error:
        raise StorageError(f"cannot read {directory.searched}: {error}") from error
