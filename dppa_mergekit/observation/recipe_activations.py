"""From a recipe and prompts to the recipe with activations: `mergekit-dppa activations`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.errors import CheckpointError, DppaError, ParameterError, RecipeError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.moments.activations_file import ActivationsFile, write_activations
from dppa_mergekit.observation.observe import Observing, Subject, observe, prompts_digest
from dppa_mergekit.observation.overlap import InputsOfModels, compare_inputs
from dppa_mergekit.observation.summary import draw_inputs, observation_summary
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.inputs import values_in
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.storage.output_files import (
    check_output_folder,
    check_recipe_output,
    write_whole,
)
from dppa_mergekit.storage.run_record import write_record

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observed:
    """What a run found.

    Attributes:
        files: Fine-tuned model -> its file.
        inputs: The inputs of every linear, compared between models.
    """

    files: Mapping[str, ActivationsFile]
    inputs: Sequence[InputsOfModels]


@dataclass(frozen=True)
class RecipeActivations:
    """The observation of all fine-tuned models of a recipe.

    Attributes:
        recipe: The recipe.
        prompts: Domain -> its prompts; each domain is named after the folder of its model.
        output: The file of the recipe with activations filled in.
        observing: How the models are observed.
        placement: The device and the dtype of live models.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    output: Path
    observing: Observing
    placement: Placement

    @property
    def folder(self) -> Path:
        """The folder of the activations' files."""
        return self.output.with_suffix(".activations")

    def run(self) -> Observed:
        """Observe the models one after the other, and write their files and the recipe.

        A file of the same weights, prompts and rank is kept, so an interrupted run goes on.

        Raises:
            DppaError: Something that the user gave cannot be used; raised before the first model
                is loaded where possible.
        """
        recipe = regression_recipe(self.recipe)
        domains = self._domains()
        check_recipe_output(self.output)
        if self.folder.exists() and not self.folder.is_dir():
            raise DppaError(f"{self.folder} is a file, and activations are written to a folder.")
        check_output_folder(self.folder, "model.safetensors")
        self.folder.mkdir(exist_ok=True)
        files = {}
        for model, domain in domains.items():
            file = self.folder / f"{domain}.safetensors"
            files[model] = observe_into(
                file, model, self.prompts[domain], self.observing, self.placement
            )
            recipe = recipe.with_parameters(model, {ACTIVATIONS.name: str(file)})
        found = Observed(files, compare_inputs(files))
        self._write(recipe, found)
        return found

    def _domains(self) -> dict[str, str]:
        """Fine-tuned model -> the domain whose prompts it is observed on."""
        models = self.recipe.fine_tuned()
        names = [short_name(model) for model in models]
        for name in names:
            if names.count(name) > 1:
                raise DppaError(
                    f"Two models are in folders called {name}, so prompts files cannot be named "
                    f"after them: link one of the folders under another name."
                )
        for name in self.prompts:
            if names.count(name) != 1:
                raise DppaError(
                    f"It is not clear which model the prompts of {name} belong to: name the "
                    f"prompts file after one of {', '.join(names)}."
                )
        for name in names:
            if name not in self.prompts:
                raise DppaError(
                    f"There are no prompts for {name}: give --prompts {name}.txt or "
                    f"{name}.jsonl, since either all models have activations or none."
                )
        return dict(zip(models, names, strict=True))

    def _write(self, recipe: Recipe, found: Observed) -> None:
        """Write the recipe, the summary, the plot and the record of the run."""
        write_whole(self.output, recipe.to_yaml())
        write_whole(self.output.with_suffix(".md"), observation_summary(found.files, found.inputs))
        if is_installed():
            draw_inputs(found.inputs, self.output.with_suffix(".png"))
        subject = {
            "recipe": self.recipe.content,
            "observing": asdict(self.observing),
            "dtype": str(self.placement.dtype),
        }
        results = [
            {
                "model": model,
                "file": file.path,
                **file.observation.model_dump(mode="json", exclude={"inputs", "model"}),
            }
            for model, file in found.files.items()
        ]
        write_record(self.output, "activations", subject, results)


def regression_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with the method that combines the same deltas by their inputs.

    Raises:
        RecipeError: There is no such method, or there is but one fine-tuned model.
    """
    method = method_table.by_inputs(recipe.method)
    if method is None:
        allowed = [name for name in method_table.names() if method_table.by_inputs(name)]
        raise RecipeError(
            f"{recipe.origin}: the deltas of {recipe.method} cannot be combined by their inputs; "
            f"allowed are {', '.join(allowed)}."
        )
    if len(recipe.fine_tuned()) < 2:
        raise RecipeError(
            f"{recipe.origin} has one fine-tuned model, whose delta needs no combination; "
            f"allowed are two or more."
        )
    weight = method.combination.weight
    for model in recipe.fine_tuned():
        for value in values_in(recipe.parameters(model).get(weight.name)):
            try:
                weight.check(value)
            except ParameterError as problem:
                raise RecipeError(f"{model}: {problem}") from problem
    return Recipe({**recipe.content, "merge_method": method.name}, recipe.origin)


def observe_into(
    path: Path, model: str, prompts: Sequence[Prompt], observing: Observing, placement: Placement
) -> ActivationsFile:
    """Observe one model, unless its file is there already.

    Args:
        path: The file of its activations.
        model: The model, as a recipe spells it.
        prompts: Its prompts.
        observing: How it is observed.
        placement: The device and the dtype of the live model.

    Raises:
        DppaError: The model cannot be loaded, or a prompt cannot be used.
    """
    source = SourceModel(model, placement)
    subject = _subject(source)
    known = _read_known(path)
    digest = prompts_digest(prompts, observing.reading)
    wanted = {
        **asdict(subject),
        "prompts_sha256": digest,
        "rank": observing.rank,
    }
    if known is not None and wanted == known.observation.model_dump(include=set(wanted)):
        LOG.info("%s: %s is of the same model, prompts and rank; it is kept.", model, path)
        return known
    live, tokenizer = source.load()
    with tqdm(total=len(prompts), desc=f"observing {model}", unit="prompt", delay=2) as bar:
        observation, moments = observe(subject, live, tokenizer, prompts, observing, bar.update)
    write_activations(path, observation, moments)
    return ActivationsFile.open(str(path))


def _subject(source: SourceModel) -> Subject:
    """Return a model as it is stored.

    Raises:
        DppaError: The model cannot be found, or its weights cannot be read.
    """
    from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

    folder = source.folder()
    index = ShardedTensorIndex.from_disk(str(folder))
    weights = Checkpoint(source.model, index).weights_digest()
    return Subject(source.model, weights, source.content(), str(source.placement.dtype))


def _read_known(path: Path) -> ActivationsFile | None:
    """Return the file of an earlier run; None if there is none that can be used."""
    try:
        file = ActivationsFile.open(str(path))
        file.check_content()
    except CheckpointError:
        return None
    return file
