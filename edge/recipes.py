"""The recipes of a station: one a kind of part, checked as a set before the first trigger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edge import recipe as single
from edge import settings
from edge.errors import ConfigError
from edge.recipe import Recipe

# A PLC names them by number and a person has to keep them apart.
MOST_RECIPES = 500


def hash_of(recipe: Recipe) -> str:
    """SHA-256 of the recipe's text, with all that it leaves to defaults.

    >>> hash_of(Recipe(name="a")) == hash_of(Recipe(name="a", number=0))
    True
    """
    return hashlib.sha256(single.dump(recipe).encode()).hexdigest()


@dataclass(frozen=True)
class RecipeSet:
    """Recipes of one bundle, in the order of their numbers; the first one is set until another is asked for.

    >>> both = RecipeSet((Recipe(name="a", number=1), Recipe(name="b", number=2, part_numbers=["B-77"])))
    >>> both.find("B-77").name, both.find(1).name, both.find("b").name, both.find(9)
    ('b', 'a', 'b', None)
    """

    recipes: tuple[Recipe, ...]

    @cached_property
    def texts(self) -> dict[str, str]:
        """Name -> the recipe's text, with all that it leaves to defaults."""
        return {recipe.name: single.dump(recipe) for recipe in self.recipes}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256 of the recipe's text: as `hash_of`, computed once."""
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()}

    @property
    def numbers(self) -> frozenset[int]:
        """By which a PLC may ask for them."""
        return frozenset(recipe.number for recipe in self.recipes)

    def find(self, wanted: int | str) -> Recipe | None:
        """By number, or else by name or part number; None when there is none."""
        for recipe in self.recipes:
            if wanted == recipe.number if isinstance(wanted, int) else wanted in (recipe.name, *recipe.part_numbers):
                return recipe
        return None


def load_set(folder: Path, classes: Sequence[str], cameras: Sequence[str]) -> RecipeSet:
    """Read every recipe of a folder (`*.toml`) and check each, and all of them together.

    Args:
        classes: of the bundle. cameras: of the station.

    Raises:
        ConfigError: with the problems of all files.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise ConfigError(str(folder), [f"the folder of recipes cannot be read: {error.strerror}"]) from error
    if not files:
        raise ConfigError(str(folder), ["it holds no recipe: put one *.toml a part number there"])
    recipes, problems = [], []
    for path in files:
        try:
            recipes.append(single.load(path, classes))
        except ConfigError as error:
            problems += [f"{path.name}: {problem}" for problem in error.problems]
    problems += _problems_of_set(recipes, cameras)
    if problems:
        raise ConfigError(str(folder), problems)
    return RecipeSet(tuple(sorted(recipes, key=lambda recipe: recipe.number)))


def set_of_one(recipe: Recipe, cameras: Sequence[str]) -> RecipeSet:
    """A station that makes one kind of part.

    Raises:
        ConfigError: the recipe names a camera that the station does not have.
    """
    problems = _strange_cameras(recipe, cameras)
    if problems:
        raise ConfigError(f"the recipe {recipe.name}", problems)
    return RecipeSet((recipe,))


def _problems_of_set(recipes: Sequence[Recipe], cameras: Sequence[str]) -> list[str]:
    problems = [f"{x.name}: number is missing: a PLC names recipes by it" for x in recipes if not x.number]
    problems += _twice(recipes, "number", lambda recipe: [recipe.number] if recipe.number else [])
    problems += _twice(recipes, "name or part number", lambda recipe: {recipe.name, *recipe.part_numbers})
    if len(recipes) > MOST_RECIPES:
        problems.append(f"{len(recipes)} recipes are more than {MOST_RECIPES}")
    problems += [
        f"{x.name}: drift is not as in {recipes[0].name}: the stream of frames is watched as one, give all the same"
        for x in recipes
        if x.drift != recipes[0].drift
    ]
    return problems + [problem for recipe in recipes for problem in _strange_cameras(recipe, cameras)]


def _twice(recipes: Sequence[Recipe], what: str, names: Callable[[Recipe], Iterable[int | str]]) -> list[str]:
    seen: dict[int | str, str] = {}
    problems = []
    for recipe in recipes:
        for name in names(recipe):
            if name in seen:
                problems.append(f"{recipe.name}: {what} {name} is also that of {seen[name]}: give each its own")
            seen.setdefault(name, recipe.name)
    return problems


def _strange_cameras(recipe: Recipe, cameras: Sequence[str]) -> list[str]:
    named = [*recipe.fusion.cameras, *recipe.fusion.optional]
    strange = sorted({name for name in named if name not in cameras})
    hints = {name: settings.did_you_mean(name, cameras) for name in strange}
    return [f"{recipe.name}: fusion: there is no camera `{name}`, {hint}" for name, hint in hints.items()]
