"""From a merged folder to a repository on the Hub: what `mergekit-dppa publish` does."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dppa_mergekit import variants
from dppa_mergekit.card import Facts, Measured, completed
from dppa_mergekit.checking import check_folder
from dppa_mergekit.checks.merged import RECIPE
from dppa_mergekit.errors import CheckpointError, DppaError, RecipeError
from dppa_mergekit.recipes import Recipe, identity
from dppa_mergekit.records import FILE, digest, read_records, versions

LOG = logging.getLogger(__name__)

CARD, PICTURE = "README.md", "density.png"

NO_TOKEN = (
    "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may "
    "write."
)


@dataclass(frozen=True)
class Publishing:
    """A merge to be published.

    Attributes:
        folder: Of the merge.
        repository: `name` or `owner/name`.
        recipe_file: That it was merged by, with records beside it; None for the one in the folder.
        names: Model of the recipe, in any spelling -> its name on the Hub.
        license: Of the merge; None for what its sources agree on.
        private: Whether only its owner sees it.
    """

    folder: Path
    repository: str
    recipe_file: Path | None
    names: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    private: bool = False

    def prepare(self, need_license: bool) -> list[Path]:
        """Complete the card in the folder, and return the files that are to be uploaded.

        Args:
            need_license: Refuse, and do not only warn, where the licence is not known.

        Raises:
            DppaError: A name is none that the Hub allows, the folder is not whole, its recipe is
                not the one given, or the licence is not known.
        """
        _check_name(self.repository)
        for name in self.names.values():
            _check_name(name)
        for finding in check_folder(self.folder, None):
            if finding.severity == "error":
                raise CheckpointError(f"{finding.subject}: {finding.sentence}")
        recipe = self._recipe()
        public = self._public(recipe)
        known = {identity(model) for model in public}
        for model in self.names:
            if identity(model) not in known:
                raise DppaError(
                    f"--name {model}: the recipe has no such model; it has {', '.join(public)}."
                )
        named = {identity(model) for model in self.names}
        for model, name in public.items():
            if _is_local(model) and identity(model) not in named:
                LOG.warning(
                    "%s is a folder of this machine; the card says %s. Give its name on the Hub: "
                    "--name %s=owner/name",
                    model,
                    name,
                    model,
                )
        licence = self.license or _agreed_license(public)
        if licence is None:
            sentence = (
                f"The licences of {', '.join(public)} are not known or differ: name the merge's "
                f"with --license, such as apache-2.0."
            )
            if need_license:
                raise DppaError(sentence)
            LOG.warning(sentence)
        facts = self._facts(recipe, public, licence)
        path = self.folder / CARD
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        written = _anonymous(completed(_anonymous(text, public), facts), public)
        path.write_text(written, encoding="utf-8")
        return sorted(self._files())

    def upload(self, files: Sequence[Path]) -> str:
        """Upload the files; returns the address of the repository.

        Raises:
            DppaError: There is no token, or the Hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise DppaError(NO_TOKEN)
        interface = HfApi()
        with tempfile.TemporaryDirectory(prefix=".dppa-", dir=self.folder.parent) as staged:
            for file in files:
                beside = Path(staged) / file.relative_to(self.folder)
                beside.parent.mkdir(parents=True, exist_ok=True)
                beside.symlink_to(file.resolve())
            recipe = self._recipe()
            # As mergekit left it, it may hold paths of this machine.
            config = Path(staged) / RECIPE
            config.unlink(missing_ok=True)
            config.write_text(_published(recipe, self._public(recipe)), encoding="utf-8")
            try:
                created = interface.create_repo(
                    self.repository, private=self.private, exist_ok=True
                )
                interface.upload_folder(
                    repo_id=created.repo_id,
                    folder_path=staged,
                    commit_message="Upload a merge by mergekit",
                )
            # Whatever the client raises: an answer of the Hub's, no network, a part that fails.
            except Exception as problem:
                raise DppaError(
                    f"{self.repository} could not be uploaded ({_first(problem)}); the same "
                    f"command tries again."
                ) from problem
        return str(created)

    def _recipe(self) -> Recipe:
        left = self.folder / RECIPE
        if self.recipe_file is None:
            return Recipe.read(left)
        recipe = Recipe.read(self.recipe_file)
        if not left.exists():
            raise RecipeError(
                f"{self.folder} has no {RECIPE}, by which mergekit says what it merged: merge "
                f"again without --no-write-model-card."
            )
        if Recipe.read(left).configuration() != recipe.configuration():
            raise RecipeError(f"{self.folder} was not merged from {self.recipe_file}.")
        return recipe

    def _public(self, recipe: Recipe) -> dict[str, str]:
        """Model, as the recipe spells it -> what it is called in public; the base is the first."""
        given = {identity(model): name for model, name in self.names.items()}
        found: dict[str, str] = {}
        base = recipe.content.get("base_model")
        for model in [*([] if base is None else [str(base)]), *recipe.tuned()]:
            otherwise = Path(model).name if _is_local(model) else model
            found[model] = given.get(identity(model), otherwise)
        return found

    def _facts(self, recipe: Recipe, public: Mapping[str, str], licence: str | None) -> Facts:
        is_dppa = recipe.method in variants.names()
        scores, ratios = self._scores()
        return Facts(
            self.repository.rsplit("/", 1)[-1],
            is_dppa,
            [name for name in public.values() if "/" in name],
            {public[model]: recipe.parameters(model) for model in recipe.tuned()},
            self._found(),
            self._picture(recipe) if is_dppa else None,
            scores,
            ratios,
            _published(recipe, public),
            versions(),
            licence,
        )

    def _found(self) -> str:
        """How factors or weights were found, by what stands beside the recipe's file."""
        if self.recipe_file is None:
            return ""
        record = read_records(self.recipe_file.parent).get(self.recipe_file.name)
        beside = self.recipe_file.with_suffix(".md")
        if not isinstance(record, dict) or not beside.exists():
            return ""
        written = digest(self.recipe_file)
        if record.get("sha256", written) != written:
            LOG.warning(
                "%s was changed since %s wrote it: the card does not say how it was found.",
                self.recipe_file,
                record.get("command"),
            )
            return ""
        lines = beside.read_text(encoding="utf-8").splitlines()
        return "\n".join(lines[1:] if lines[:1] and lines[0].startswith("# ") else lines)

    def _picture(self, recipe: Recipe) -> str | None:
        from dppa_mergekit.curves import is_installed

        if not is_installed():
            return None
        from dppa_mergekit.analysing import Analysing
        from dppa_mergekit.analysis_pictures import draw_density
        from dppa_mergekit.unmerged import AS_STORED

        try:
            found = Analysing(recipe, {}, AS_STORED, self.folder.parent).run()
        except DppaError as problem:
            LOG.warning("There will be no picture of the densities: %s", problem.message)
            return None
        draw_density(found, self.folder / PICTURE)
        return PICTURE

    def _scores(self) -> tuple[list[Measured], dict[str, float]]:
        """What `evaluate` measured of this folder, by the records near it; the last counts."""
        places = [self.folder, self.folder.parent, *sorted(self.folder.parent.iterdir())]
        if self.recipe_file is not None:
            places.append(self.recipe_file.parent)
        scores: list[Measured] = []
        ratios: dict[str, float] = {}
        for place in places:
            for record in read_records(place).values() if place.is_dir() else ():
                if isinstance(record, dict) and record.get("command") == "evaluate":
                    for found in record.get("results") or ():
                        own = list(_of_model(found, self.folder))
                        if own:
                            scores, ratios = own[0]
        return scores, ratios

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not hidden and path.name != FILE:
                yield path


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise DppaError(f"{name} is no name on the Hub: {_first(problem)}.") from problem


def _of_model(
    found: Mapping[str, object], folder: Path
) -> Iterator[tuple[list[Measured], dict[str, float]]]:
    """Scores and ratios of a merged folder in the results of an evaluation."""
    models, tuned_on = found.get("models"), found.get("tuned_on")
    if not isinstance(models, dict) or not isinstance(tuned_on, list):
        return
    for name, of_model in models.items():
        if identity(name) != identity(str(folder)):
            continue
        scores = [
            Measured(task, float(score["value"]), score["error"], task in tuned_on)
            for task, score in of_model["scores"].items()
        ]
        yield scores, {d: float(ratio["value"]) for d, ratio in of_model["domain_ratios"].items()}


def _is_local(model: str) -> bool:
    return Path(model).exists() or model.startswith((".", "/", "~"))


def _published(recipe: Recipe, public: Mapping[str, str]) -> str:
    """The recipe's YAML with public names."""

    def named(value: object) -> object:
        if isinstance(value, dict):
            return {
                key: public.get(str(each), each)
                if key in ("model", "base_model", "source") and isinstance(each, str)
                else named(each)
                for key, each in value.items()
            }
        return [named(each) for each in value] if isinstance(value, list) else value

    return yaml.safe_dump(named(deepcopy(recipe.content)), sort_keys=False, allow_unicode=True)


def _anonymous(text: str, public: Mapping[str, str]) -> str:
    """A text with public names in place of the spellings of local models."""
    for model, name in sorted(public.items(), key=lambda pair: -len(pair[0])):
        if model == name:
            continue
        if "/" in model:
            whole = re.compile(rf"(?<![\w./~-]){re.escape(model)}(?![\w/-])")
            text = name.join(whole.split(text))
            continue
        # A bare name may be a word as well: only where mergekit writes models.
        for before, after in (
            ("(?<=using )", "(?= as a base)"),
            (r"(?m)(?<=^\* )", "$"),
            ("(?<=model: )", r"(?=\s)"),
        ):
            here = re.compile(before + re.escape(model) + after)
            text = name.join(here.split(text))
    return text


def _agreed_license(public: Mapping[str, str]) -> str | None:
    """The licence in the cards of all models; None where one has none, or they differ."""
    found = {_license(model, name) for model, name in public.items()}
    return found.pop() if len(found) == 1 else None


def _license(model: str, name: str) -> str | None:
    from huggingface_hub import HfApi, ModelCard, ModelCardData

    path = Path(model) / CARD
    data: object = None
    try:
        if path.exists():
            text = path.read_text(encoding="utf-8")
            data = ModelCard(text, ignore_metadata_errors=True).data
        elif "/" in name:
            data = HfApi().model_info(name, timeout=10).card_data
    # Whatever the client raises for a card that cannot be fetched or read.
    except Exception as problem:
        LOG.warning("The card of %s cannot be read (%s).", name, _first(problem))
    return data.license if isinstance(data, ModelCardData) else None


def _first(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200].rstrip(".")
