"""From a merged folder to a repository on the Hub: what `mergekit-dppa publish` does."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import yaml

from dppa_mergekit import method_table
from dppa_mergekit.checks.check import check_folder
from dppa_mergekit.checks.merged_folder import RECIPE
from dppa_mergekit.errors import CheckpointError, DppaError, RecipeError
from dppa_mergekit.publishing.model_card import Facts, Measurements, complete_card
from dppa_mergekit.publishing.past_evaluations import measured_last
from dppa_mergekit.publishing.public_names import (
    anonymous,
    is_local,
    public_names,
    refuse_paths,
    renamed,
)
from dppa_mergekit.recipes import Recipe, identity
from dppa_mergekit.scoring.tables import FILE as EVALUATION
from dppa_mergekit.storage.run_record import FILE, digest, read_records, versions

LOG = logging.getLogger(__name__)

CARD, PICTURE = "README.md", "density.png"

KEPT_BACK = (FILE, f"{EVALUATION}.*", "analysis.*")
"""What commands of this package leave in a folder; it names folders of this machine."""

WEIGHTS = re.compile(
    r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?"
)
"""Names of files by which transformers finds weights: one file before any index of shards."""

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

    def prepare(self, dry_run: bool) -> list[Path]:
        """Complete the card in the folder, and return the files that are to be uploaded.

        Args:
            dry_run: There will be no upload: without a login, or a licence, it is prepared as well.

        Raises:
            DppaError: There is no token, a name is none that the Hub allows, the recipe would name
                folders of this machine or is not the one given, the licence is not known, or the
                folder is not whole; in this order, since the last takes longest.
        """
        if not dry_run:
            _check_login()
        _check_name(self.repository)
        for name in self.names.values():
            _check_name(name)
        recipe = self._recipe()
        names = public_names(recipe.content, self.names)
        known = {identity(model) for model in names}
        for model in self.names:
            if identity(model) not in known:
                raise DppaError(
                    f"--name {model}: the recipe has no such model; it has {', '.join(names)}."
                )
        refuse_paths(renamed(recipe.content, names), self.names.values())
        self._tell_unnamed(names)
        public = _public(recipe, names)
        licence = self.license or _agreed_license(public)
        if licence is None:
            sentence = (
                f"The licences of {', '.join(public)} are not known or differ: name the merge's "
                f"with --license, such as apache-2.0."
            )
            if not dry_run:
                raise DppaError(sentence)
            LOG.warning(sentence)
        for finding in check_folder(self.folder, None):
            if finding.severity == "error":
                raise CheckpointError(f"{finding.subject}: {finding.sentence}")
        facts = self._facts(recipe, names, licence)
        path = self.folder / CARD
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        written = anonymous(complete_card(anonymous(text, names), facts), names)
        path.write_text(written, encoding="utf-8")
        return sorted(self._files())

    def upload(self, files: Sequence[Path]) -> str:
        """Upload the files; returns the address of the repository.

        Raises:
            DppaError: There is no token, or the Hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi

        _check_login()
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
            names = public_names(recipe.content, self.names)
            config.write_text(_published(recipe, names), encoding="utf-8")
            try:
                created = interface.create_repo(
                    self.repository, private=self.private, exist_ok=True
                )
                there = interface.list_repo_files(created.repo_id)
                interface.upload_folder(
                    repo_id=created.repo_id,
                    folder_path=staged,
                    commit_message="Upload a merge by mergekit",
                    # What is uploaded is not deleted: the client sees to it.
                    delete_patterns=[name for name in there if WEIGHTS.fullmatch(name)],
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

    def _tell_unnamed(self, names: Mapping[str, str]) -> None:
        """Say which models are known to this machine only."""
        told = {identity(model) for model in self.names}
        for model, name in names.items():
            if is_local(model) and identity(model) not in told:
                told.add(identity(model))
                LOG.warning(
                    "%s is a folder of this machine; the card says %s. Give its name on the Hub: "
                    "--name %s=owner/name",
                    model,
                    name,
                    model,
                )

    def _facts(self, recipe: Recipe, names: Mapping[str, str], licence: str | None) -> Facts:
        is_dppa = recipe.method in method_table.names()
        public = _public(recipe, names)
        return Facts(
            self.repository.rsplit("/", 1)[-1],
            is_dppa,
            [name for name in public.values() if "/" in name],
            {public[model]: recipe.parameters(model) for model in recipe.fine_tuned()},
            self._found(),
            self._picture(recipe) if is_dppa else None,
            self._measured(),
            _published(recipe, names),
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
        from dppa_mergekit.report.plot_style import is_installed

        if not is_installed():
            return None
        from dppa_mergekit.analysis.analyze import analyze
        from dppa_mergekit.analysis.plots import draw_density

        try:
            found = analyze(recipe)
        except DppaError as problem:
            LOG.warning("There will be no picture of the densities: %s", problem.message)
            return None
        draw_density(found, self.folder / PICTURE)
        return PICTURE

    def _measured(self) -> Measurements:
        """What `evaluate` measured last; what is left out of this folder's is said."""
        found, left = measured_last(self.folder, self._places())
        for place, reason in left.items():
            LOG.warning("The evaluation in %s %s: it is not in the card.", place, reason)
        return found

    def _places(self) -> list[Path]:
        """Where records of the folder may be: in it, beside it, in folders beside it."""
        folder = self.folder.resolve()
        places = [folder, folder.parent, *sorted(folder.parent.iterdir())]
        if self.recipe_file is not None:
            places.append(self.recipe_file.resolve().parent)
        return [place for place in dict.fromkeys(places) if place.is_dir()]

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            kept_back = any(fnmatch(path.name, pattern) for pattern in KEPT_BACK)
            if path.is_file() and not hidden and not kept_back:
                yield path


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise DppaError(f"{name} is no name on the Hub: {_first(problem)}.") from problem


def _check_login() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise DppaError(NO_TOKEN)


def _public(recipe: Recipe, names: Mapping[str, str]) -> dict[str, str]:
    """Model that is merged -> what it is called in public; the base is the first."""
    base = recipe.content.get("base_model")
    models = [*([] if base is None else [str(base)]), *recipe.fine_tuned()]
    return {model: names.get(model, model) for model in models}


def _published(recipe: Recipe, names: Mapping[str, str]) -> str:
    """The recipe's YAML with public names."""
    content = renamed(recipe.content, names)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


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
