"""study.yaml as checked, typed values: which methods, for which specialists, on which corpus, at which size.

Keys are read as those of recipes are: an unknown one is an error that names the nearest, and everything that can be
checked without data is checked before anything runs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from crisp_stream.config.durations import parse_duration
from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import InputError, RecipeError
from crisp_stream.selection.doge.domain_weights import Update
from crisp_stream.study.record.values import Along
from crisp_stream.typed import Builder

Kind = Literal["base", "crisp", "multitask", "classifier", "nearest", "dsir", "doge", "only-specialist"]
"""The way in which a method chooses what to train on."""

TEXT_FOLDER = "{text}"
"""Stands for the folder of the fetched text in the paths of a study."""
_CANDIDATES = {"share": ("classifier", "nearest", "dsir"), "base_share": ("crisp", "multitask", "doge")}
"""Keys that candidates differ in, and the kinds that they have a meaning for."""
_STUDIES = Path(__file__).parents[1] / "recipes" / "studies"
_BUILDER = Builder(error=InputError, key_noun="study key", lenient=True)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """A generalist dataset: one that exists, or how it is written. Keys are the options of `crisp-stream write`."""

    root: str | None = None
    """Root of a dataset that exists already; the other keys then mean nothing."""
    inputs: tuple[str, ...] = ()
    text_column: str = "text"
    limit: int | None = None
    sample: float | None = None
    window_tokens: int = 1024
    vocab_size: int = 32_000
    encoder: str | None = None
    max_length: int | None = None
    arity: int = 64
    depth: int = 2
    min_split: int | None = None
    like: str | None = None
    """Name of another dataset of the study whose tokenizer, tree and encoder are used."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SpecialistSettings:
    """A task: documents in three files, or a set of multiple-choice questions, which is cut in halves."""

    train: tuple[str, ...] = ()
    """Documents that methods learn from: D^s."""
    validation: tuple[str, ...] = ()
    """Documents by which candidates are chosen."""
    test: tuple[str, ...] = ()
    """Documents that models are judged by."""
    text_column: str = "text"
    questions: str | None = None
    """Question set instead of documents. Models are judged by one half; a fifth of the other is for validation."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A row of the table. Where a key is a list, its values are candidates, chosen by validation."""

    kind: Kind | None = None
    """Nothing: the method's name is one."""
    dataset: str | None = None
    """Nothing: the first one."""
    level: int = 1
    """Level of the tree whose clusters count, for crisp, multitask and doge."""
    examples: int | None = None
    """Examples of D^s that the method may see, drawn at random; the study's `examples` when nothing is said."""
    share: tuple[float, ...] = (0.025,)
    """Share of the windows that classifier, nearest and dsir select; a threshold quantile q is the share 1 - q."""
    neighbours: int = 1
    """Nearest task examples averaged per score. Only for kind nearest."""
    base_share: tuple[float, ...] = (0.0,)
    """Share of the base mixture in the one of the method's histogram."""
    generic_share: float = 0.0
    """Share of the run on the base mixture, before the switch to the method's (continued pretraining)."""
    update: Update = "paper"
    """Form of the score. Only for kind doge."""
    average: Literal["run", "last"] = "run"
    """Average of the weights that is used. Only for kind doge."""
    mu: float = 5e-4
    """Bregman coefficient. Only for kind doge."""
    proxy: tuple[str, ...] = ()
    """Recipe of the proxy model, a size and key=value; the study's when nothing is said. Only for kind doge."""
    specialists: tuple[str, ...] = ()
    """Specialists that the method is run for; all when nothing is said."""
    num_seeds: int | None = None
    """Number of the study's seeds that it is run with; all when nothing is said."""
    transfer: bool = False
    """Judge its models on the test sets of the other specialists, too."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Methods that are fine-tuned, and the fractions of the steps that are tried."""

    methods: tuple[str, ...]
    fractions: tuple[float, ...] = (0.03, 0.1, 0.3)


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """A figure of some methods along what they differ in."""

    along: Along
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A study: what is run for every method, specialist and seed, and what is said of it."""

    name: str
    recipe: tuple[str, ...]
    """Size of the models and `key=value`, as for `crisp-stream train`, without a method."""
    datasets: dict[str, DatasetSettings]
    """The first one is what methods take unless they name another, and its tokenizer and windows are used for all."""
    specialists: dict[str, SpecialistSettings]
    methods: dict[str, MethodSettings]
    """Methods in the order of the tables. One must be of kind base."""
    fetch: Literal["small", "full"] | None = None
    """Fetch the study's text first; `{text}` in paths is its folder."""
    generalist_test: tuple[str, ...] = ()
    """Held-out documents of the corpus; nothing: models are not judged on it."""
    examples: int | None = None
    """Examples of D^s that methods may see, drawn at random; nothing: all."""
    validation_limit: int | None = 200
    """Documents of each validation set, drawn at random. Nothing: all."""
    test_limit: int | None = 500
    """Documents of each test set, drawn at random. Nothing: all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of initial weights and order. Candidates are chosen with the first one."""
    finetune: FinetuneSettings | None = None
    reference: str | None = None
    """Method that the paper's claims are checked on; the first of kind crisp when nothing is said."""
    curves: tuple[CurveSettings, ...] = ()
    eval_batch_size: int = 8
    """Full contexts per forward pass when judging."""
    tags: dict[str, str] = field(default_factory=dict)
    """Anything to be said of the study, kept in its record."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def first_dataset(self) -> str:
        """Dataset whose tokenizer and windows all use."""
        return next(iter(self.datasets))

    @property
    def base(self) -> str:
        """The method of kind base."""
        return next(name for name, method in self.methods.items() if method.kind == "base")

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Seeds that a method is run with."""
        return self.seeds[: self.methods[method].num_seeds]

    def specialists_of(self, method: str, *, finetuned: bool = False) -> tuple[str, ...]:
        """Specialists that a method is run, or fine-tuned, for; `("",)` where one pretrained model is for all."""
        settings = self.methods[method]
        if settings.kind in ("base", "multitask") and not finetuned:
            return ("",)
        return settings.specialists or tuple(self.specialists)

    def dataset_of(self, method: MethodSettings) -> str:
        """Dataset that a method chooses from."""
        return method.dataset or self.first_dataset

    def examples_of(self, method: MethodSettings) -> int | None:
        """Examples of D^s that a method may see; None: all."""
        return method.examples or self.examples

    def recipe_of(self, kind: str, overrides: Sequence[str] = ()) -> Recipe:
        """The study's recipe with a method of the packaged recipes."""
        names, changes = recipes_and_overrides(self.recipe)
        return _recipe((*names, kind), (*changes, *overrides))

    @property
    def num_batches(self) -> int:
        """Steps of every model, those of fine-tuning included."""
        return parse_duration(self.recipe_of("base").max_duration)[0]


@functools.lru_cache(maxsize=1024)
def _recipe(names: tuple[str, ...], overrides: tuple[str, ...]) -> Recipe:
    """Load a recipe once: a study plans anew after each job, and asks for the same ones each time."""
    return load_recipe(names, overrides)


def candidates_of(method: MethodSettings) -> list[dict[str, float]]:
    """Candidates of a method: one value for each key with several; one empty candidate where there are none."""
    keys = [key for key, kinds in _CANDIDATES.items() if method.kind in kinds and len(getattr(method, key)) > 1]
    values = itertools.product(*(getattr(method, key) for key in keys))
    return [dict(zip(keys, choice, strict=True)) for choice in values]


def with_candidate(method: MethodSettings, candidate: dict[str, float]) -> MethodSettings:
    """The method with one value for each key that a candidate names."""
    return replace(method, **{key: (value,) for key, value in candidate.items()})


def load_study(path: str | Path) -> StudySettings:
    """Read a study from YAML: a file, or the name of a packaged one (`small`).

    Raises:
        InputError: no such file, not YAML, an unknown or missing key, a wrong type, or a contradiction.
    """
    if str(path) in study_names() and not Path(path).exists():
        path = _STUDIES / f"{path}.yaml"
    path = Path(path)
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Name the YAML file of a study, or one of {', '.join(study_names())}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must be a mapping of keys, got {type(tree).__name__}.")
    tree = {"name": path.stem, **tree}
    methods = tree.get("methods")
    try:
        if isinstance(methods, dict):
            tree["methods"] = {name: _with_kind(str(name), method) for name, method in methods.items()}
        return _BUILDER.build(StudySettings, tree)
    except (InputError, RecipeError) as error:
        raise InputError(f"{path}: {error}") from error


def study_names() -> list[str]:
    """The packaged studies."""
    return sorted(path.stem for path in _STUDIES.glob("*.yaml"))


def read_study(name: str) -> str:
    """Text of a packaged study, comments included. Raises InputError: there is none of the name."""
    if name not in study_names():
        raise InputError(f"{name} is not a packaged study. There are {', '.join(study_names())}.")
    return (_STUDIES / f"{name}.yaml").read_text(encoding="utf-8")


def _with_kind(name: str, method: Any) -> Any:
    if method is None:
        method = {}
    if not isinstance(method, dict):
        return method
    if method.get("kind") is None:
        if name not in get_args(Kind):
            raise InputError(f"methods.{name}: `kind` must be one of {', '.join(get_args(Kind))}; it is missing.")
        method = {**method, "kind": name}
    many = {key: [value] for key in _CANDIDATES if isinstance(value := method.get(key), int | float)}
    return {**method, **many}


def _require(holds: bool, key: str, rule: str) -> None:
    if not holds:
        raise InputError(f"{key}: {rule}")


def _check(study: StudySettings) -> None:
    for key in ("datasets", "specialists", "seeds"):
        _require(len(getattr(study, key)) > 0, key, "at least one is needed, got none.")
    _require(len(set(study.seeds)) == len(study.seeds), "seeds", f"must differ, got {study.seeds}.")
    bases = [name for name, method in study.methods.items() if method.kind == "base"]
    _require(len(bases) == 1, "methods", f"exactly one must be of kind base, got {', '.join(bases) or 'none'}.")
    for key in ("examples", "validation_limit", "test_limit", "eval_batch_size"):
        value = getattr(study, key)
        _require(value is None or value > 0, key, f"must be above 0, got {value}.")
    for name in (*study.datasets, *study.specialists, *study.methods):
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        _require(is_name, repr(name), "a name must be of letters, digits, - and _, got another sign.")
    before: list[str] = []
    for name, dataset in study.datasets.items():
        key, like = f"datasets.{name}", dataset.like
        _require((dataset.root is None) != (not dataset.inputs), key, "must have either `root` or `inputs`, not both.")
        _require(
            like is None or like in before, f"{key}.like", f"must name a dataset that stands before it, got {like}."
        )
        before.append(name)
    for name, specialist in study.specialists.items():
        documents, asks = [specialist.train, specialist.validation, specialist.test], specialist.questions is not None
        key = f"specialists.{name}"
        _require(not asks or not any(documents), key, "must have either `questions` or documents, not both.")
        _require(asks or all(documents), key, "must have train, validation and test documents, or `questions`.")
    for name, method in study.methods.items():
        _check_method(f"methods.{name}", method, study)
    _check_finetuning(study)
    _check_names(study)
    recipe = study.recipe_of("base")
    duration = recipe.max_duration
    is_batches = parse_duration(duration)[1] == "ba"
    _require(is_batches, "recipe", f"max_duration must be in batches, such as 400ba, got {duration}.")
    _require(recipe.load_path is None, "recipe", "load_path has no place in a study, which starts from random weights.")


def _check_names(study: StudySettings) -> None:
    named = {"reference": [study.reference] if study.reference else []}
    named |= {f"curves.{number}": list(curve.methods) for number, curve in enumerate(study.curves)}
    for key, names in named.items():
        for name in names:
            _require(name in study.methods, key, f"{name} is none of the methods ({', '.join(study.methods)}).")


def _check_method(key: str, method: MethodSettings, study: StudySettings) -> None:
    for holds, rule in (
        (method.dataset in (None, *study.datasets), f"{method.dataset} is none of {', '.join(study.datasets)}."),
        (method.level >= 1, f"level must be at least 1, got {method.level}."),
        (method.examples is None or method.examples > 0, f"examples must be above 0, got {method.examples}."),
        (method.share and all(0 < share < 1 for share in method.share), "share must lie between 0 and 1."),
        (method.base_share and all(0 <= share < 1 for share in method.base_share), "base_share: 0 to 1."),
        (
            method.kind != "multitask" or len(method.base_share) == 1,
            "base_share must be one value: a model for all has no validation set to choose by.",
        ),
        (0 <= method.generic_share < 1, f"generic_share must lie in [0, 1), got {method.generic_share}."),
        (
            method.generic_share == 0 or method.kind not in ("base", "only-specialist"),
            f"generic_share has no meaning for {method.kind}.",
        ),
        (method.num_seeds in (None, *range(1, len(study.seeds) + 1)), f"num_seeds: 1 to {len(study.seeds)}."),
    ):
        _require(bool(holds), key, rule)
    for name in method.specialists:
        known = ", ".join(study.specialists)
        _require(name in study.specialists, key, f"{name} is none of the specialists ({known}).")


def _check_finetuning(study: StudySettings) -> None:
    if study.finetune is None:
        return
    for name in study.finetune.methods:
        key, known = "finetune.methods", ", ".join(study.methods)
        _require(name in study.methods, key, f"{name} is none of the methods ({known}).")
        only = study.methods[name].kind == "only-specialist"
        _require(not only, key, f"{name} is trained on the specialist text already. Leave it out.")
    key, fractions, steps = "finetune.fractions", study.finetune.fractions, study.num_batches
    differ = 0 < len(fractions) == len(set(fractions)) and all(0 < fraction < 1 for fraction in fractions)
    _require(differ, key, f"must differ and lie between 0 and 1, got {fractions}.")
    enough = all(round(steps * fraction) for fraction in fractions)
    _require(enough, key, f"each must be at least a step of {steps}, got {fractions}.")
