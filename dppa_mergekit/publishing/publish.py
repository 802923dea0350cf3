"""Publish a merged folder as a repository on the Hub, as `mergekit-dppa publish` does."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.checks.check import check_folder
from dppa_mergekit.checks.checkpoint_files import find_strays, inspect_folder
from dppa_mergekit.checks.merged_folder import RECIPE
from dppa_mergekit.errors import CheckpointError, DppaError, RecipeError
from dppa_mergekit.moments.activations_file import (
    ActivationsFile,
    Observation,
    rename_observed_model,
)
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.publishing.benchmarks import FOLDER as BENCHMARK_RESULTS
from dppa_mergekit.publishing.benchmarks import write_benchmark_results
from dppa_mergekit.publishing.density_plot import plot_densities
from dppa_mergekit.publishing.hub import check_login, check_name, find_license, upload_folder
from dppa_mergekit.publishing.model_card import CARD, Facts, complete_card
from dppa_mergekit.publishing.past_evaluations import last_measurements
from dppa_mergekit.publishing.public_names import (
    anonymize,
    is_local,
    merged_models,
    public_files,
    public_names,
    public_yaml,
    refuse_paths,
    rename_models,
)
from dppa_mergekit.publishing.tuning_report import read_report
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.scoring.tables import FILE as EVALUATION
from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.storage.run_record import FILE, digest, read_records, versions, write_record

LOG = logging.getLogger(__name__)

LOCAL_FILES = (FILE, f"{EVALUATION}.*", "analysis.*")
"""Files of this package that name local folders; they are not uploaded."""


@dataclass(frozen=True)
class Publishing:
    """A merge to be published.

    Attributes:
        folder: The folder of the merge.
        repository: `name` or `owner/name`.
        recipe_file: The recipe that was merged, with run records beside it; None for the one that
            mergekit left in the folder.
        names: Model of the recipe, in any spelling -> its name on the Hub.
        license: The license of the merge; None for the one that all models share.
        private: Whether a new repository is private.
        with_activations: Whether the files of the activations are uploaded, too.
        loading: How the merge loaded models.
    """

    folder: Path
    repository: str
    recipe_file: Path | None
    names: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    private: bool = False
    with_activations: bool = False
    loading: LoadingOptions = DEFAULT_LOADING

    def prepare(self, dry_run: bool) -> list[Path]:
        """Complete the card and the benchmarks' results in the folder; return what to upload.

        Args:
            dry_run: Whether there will be no upload, so that neither a login nor a license is
                needed.

        Raises:
            DppaError: There is no token, a name is not allowed on the Hub, the recipe is not the
                one that was merged or would be uploaded with local paths, the license is not
                known, or the folder is incomplete. They are checked in this order: the last check
                takes longest.
        """
        if not dry_run:
            check_login()
        for name in (self.repository, *self.names.values()):
            check_name(name)
        recipe = self._recipe()
        names = public_names(recipe.content, self.names)
        self._check_models(names)
        activations = self.activations()
        for file in activations if self.with_activations else ():
            ActivationsFile.open(file)
        shown = self._shown(recipe)
        allowed = [*self.names.values(), *activations.values()]
        refuse_paths(rename_models(recipe.content, shown), allowed)
        self._warn_of_local_models(names)
        merge_license = self._license(merged_models(recipe, names), dry_run)
        for finding in check_folder(self.folder, None, self.loading):
            if finding.severity == "error":
                raise CheckpointError(f"{finding.subject}: {finding.sentence}")
            if finding.severity == "warning":
                LOG.warning("%s: %s", finding.subject, finding.sentence)
        facts = self._facts(recipe, names, merge_license)
        path = self.folder / CARD
        text = self._written_card(shown)
        write_whole(path, anonymize(complete_card(anonymize(text, shown), facts), shown))
        write_record(path, "publish", {"card": text, "names": shown}, [])
        write_benchmark_results(self.folder, facts.measurements)
        return sorted(self._files())

    def upload(self, files: Sequence[Path]) -> str:
        """Upload files of the folder, and return the address of the repository.

        Raises:
            DppaError: There is no token, or the Hub cannot be reached or refuses.
        """
        # In the folder itself, which has been written to: its parent may be read-only, and the
        # system's temporary folder too small for activations.
        with tempfile.TemporaryDirectory(prefix=".dppa-", dir=self.folder) as staged:
            for file in files:
                link = Path(staged) / file.relative_to(self.folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
            # The recipe that mergekit left may name local folders.
            config = Path(staged) / RECIPE
            config.unlink(missing_ok=True)
            config.write_text(self._public_recipe(), encoding="utf-8")
            names = self._shown(self._recipe())
            for activations, name in self.activations().items() if self.with_activations else ():
                target = Path(staged) / name
                target.parent.mkdir(exist_ok=True)
                rename_observed_model(activations, target, names)
            return upload_folder(Path(staged), self.repository, self.private)

    def activations(self) -> dict[str, str]:
        """Return each activations file of the recipe -> its public name."""
        folder = ACTIVATIONS.name if self.with_activations else ""
        return public_files(self._recipe().content, folder)

    def size(self, file: Path) -> int:
        """Return the size of a file as it is uploaded, in bytes."""
        if file == self.folder / RECIPE:
            return len(self._public_recipe().encode())
        return file.stat().st_size

    def _public_recipe(self) -> str:
        """Return the text of the recipe that is uploaded."""
        recipe = self._recipe()
        return public_yaml(recipe, self._shown(recipe))

    def _shown(self, recipe: Recipe) -> dict[str, str]:
        """Return each model and activations file of the recipe -> its public name."""
        return {**public_names(recipe.content, self.names), **self.activations()}

    def _written_card(self, names: Mapping[str, str]) -> str:
        """Return the text of the card as it was before an earlier run, which may have had other
        names; as it is now where it has been edited since then.

        Args:
            names: Model or file of the recipe -> its name in this run.
        """
        path = self.folder / CARD
        record = read_records(self.folder).get(CARD)
        if isinstance(record, dict) and path.exists():
            if record.get("sha256") == digest(path):
                return str(record.get("card", ""))
            if record.get("names") != names:
                LOG.warning(
                    "%s was edited after a run with other names, which may still stand in it.", path
                )
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _recipe(self) -> Recipe:
        """Return the recipe. Raises RecipeError if the folder was merged from another one."""
        merged = self.folder / RECIPE
        if self.recipe_file is None:
            return Recipe.read(merged)
        recipe = Recipe.read(self.recipe_file)
        if not merged.exists():
            raise RecipeError(
                f"{self.folder} has no {RECIPE}, the recipe that mergekit writes into the folder "
                f"of a merge: merge again without --no-write-model-card."
            )
        if Recipe.read(merged).configuration() != recipe.configuration():
            raise RecipeError(f"{self.folder} was not merged from {self.recipe_file}.")
        return recipe

    def _check_models(self, names: Mapping[str, str]) -> None:
        """Raise DppaError if a name was given for a model that the recipe does not have."""
        known = {identity(model) for model in names}
        for model in self.names:
            if identity(model) not in known:
                raise DppaError(
                    f"--name {model}: the recipe has no such model; it has {', '.join(names)}."
                )

    def _warn_of_local_models(self, names: Mapping[str, str]) -> None:
        """Log a warning for each local model without a name on the Hub."""
        named = {identity(model) for model in self.names}
        for model, name in names.items():
            if is_local(model) and identity(model) not in named:
                named.add(identity(model))
                LOG.warning(
                    "%s is a local folder, which the card calls %s. Give its name on the Hub: "
                    "--name %s=owner/name",
                    model,
                    name,
                    model,
                )

    def _license(self, models: Mapping[str, str], dry_run: bool) -> str | None:
        """Return the license of the merge.

        Args:
            models: Model -> its public name.
            dry_run: Whether to return None, with a warning, if the license is not known.

        Raises:
            DppaError: The license is not known.
        """
        if self.license:
            return self.license
        found = {find_license(model, name) for model, name in models.items()}
        agreed = found.pop() if len(found) == 1 else None
        if agreed is None:
            sentence = (
                f"The licenses of {', '.join(models.values())} are unknown or differ: set the "
                f"license of the merge with --license, for example --license apache-2.0."
            )
            if not dry_run:
                raise DppaError(sentence)
            LOG.warning(sentence)
        return agreed

    def _facts(self, recipe: Recipe, names: Mapping[str, str], merge_license: str | None) -> Facts:
        method = method_table.method_of(recipe.method)
        public = merged_models(recipe, names)
        return Facts(
            name=self.repository.rsplit("/", 1)[-1],
            method=method,
            base_models=[name for name in public.values() if "/" in name],
            parameters={public[model]: recipe.parameters(model) for model in recipe.fine_tuned()},
            report="" if self.recipe_file is None else read_report(self.recipe_file),
            plot=plot_densities(recipe, self.folder, self.loading) if method else None,
            measurements=last_measurements(self.folder, self.recipe_file),
            observed=_observations(recipe, public),
            recipe=self._public_recipe(),
            has_activations=self.with_activations or not self.activations(),
            versions=versions(),
            license=merge_license,
        )

    def _files(self) -> Iterator[Path]:
        """Yield the files of the folder that are uploaded; no weights but those of the merge."""
        facts, _ = inspect_folder(self.folder, str(self.folder))
        strays = find_strays(self.folder, set(facts.files.values()))
        for path in self.folder.rglob("*"):
            parts = path.relative_to(self.folder).parts
            is_hidden = any(part.startswith(".") for part in parts if part != BENCHMARK_RESULTS)
            stays = any(fnmatch(path.name, pattern) for pattern in LOCAL_FILES)
            if path.is_file() and not is_hidden and not stays and path not in strays:
                yield path


def _observations(recipe: Recipe, public: Mapping[str, str]) -> dict[str, Observation]:
    """Public name of a model -> how its inputs were observed, as far as the files are here."""
    files = {model: recipe.parameters(model).get(ACTIVATIONS.name) for model in recipe.fine_tuned()}
    return {
        public[model]: ActivationsFile.open(file).observation
        for model, file in files.items()
        if isinstance(file, str) and Path(file).exists()
    }
