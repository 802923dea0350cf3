"""ANARCII's models: the base, which numbers antibodies, and two fine-tunes of it.

The package anarcii on PyPI ships them: small encoder-decoders that read the amino acids of a domain
and write the kind of its chain, then a word for each amino acid, which is a position of IMGT's
numbering, `X` for an insertion, or `<SKIP>` outside the domain (ANARCII, bioRxiv
2025.04.16.648720). One fine-tune numbers T-cell receptors, the other the VNARs of sharks.

The target words of the models differ in the last few, which name chains. `align_vocabularies`
brings all of them to one list of words.

Only two of the package's modules are executed, by their paths: the network and the tokenizer. The
package itself would ask for dependencies that these do not need.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import click
import torch
from receptor_domains import Domain
from torch.nn.utils.rnn import pad_sequence

Weights: TypeAlias = dict[str, torch.Tensor]
Word: TypeAlias = int | str

PACKAGES = {"anarcii": "anarcii==2.0.8", "anarci": "anarci==2026.2.13.2"}
"""Name -> what pip is asked for. anarcii has the models, anarci the germline genes."""

TYPES = {"base": "antibody", "tcr": "tcr", "shark": "shark"}
"""Our name of a model -> the package's."""

BY_WORD = ("decoder.tok_embedding.weight", "decoder.fc_out.weight", "decoder.fc_out.bias")
"""Tensors whose first axis is indexed by target words."""

SIZE, HEADS, LAYERS, HIDDEN, DROPOUT = 128, 4, 2, 512, 0.25
"""The shape of the networks, as in the models' JSON files; without gradients nothing drops out."""

PASSES = 8
"""Corrections of a guess, each about a tenth of the time that decoding word by word takes."""


def find_package(name: str, folder: Path) -> Path:
    """Return a package's own folder: installed, or downloaded below `folder`.

    Raises:
        click.ClickException: pip cannot download the package.
    """
    installed = find_spec(name)
    if installed is not None and installed.submodule_search_locations:
        return Path(next(iter(installed.submodule_search_locations)))
    if not (folder / name).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGES[name]]
        if subprocess.run([*command, "--dest", str(folder)], check=False).returncode:
            raise click.ClickException(
                f"This example needs {' and '.join(PACKAGES.values())}, and pip cannot download"
                f" {name} (anarcii needs Python 3.11 or later)."
            )
        (wheel,) = folder.glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder / name


def align_vocabularies(
    models: Mapping[str, Weights], words: Mapping[str, Sequence[Word]]
) -> tuple[dict[str, Weights], list[Word]]:
    """Give all models the same target words.

    The words are those of the first model, then those that others have in addition. The row of a
    word that a model lacks is that of the first model that has it; so where the base is first, the
    delta of such a row is 0 unless two fine-tuned models have the word.

    Args:
        models: Name -> tensors; those of `BY_WORD` are (words, ...).
        words: Name -> the target words of the model, a row each.

    Returns:
        The models with aligned tensors, the others being the same objects, and the words.
    """
    union = list(dict.fromkeys(word for own in words.values() for word in own))
    rows = {name: {word: row for row, word in enumerate(own)} for name, own in words.items()}

    def align(name: str, key: str) -> torch.Tensor:
        holders = (next(m for m in (name, *models) if word in rows[m]) for word in union)
        return torch.stack(
            [
                models[holder][key][rows[holder][word]]
                for holder, word in zip(holders, union, strict=True)
            ]
        )

    return {
        name: {
            key: align(name, key) if key in BY_WORD else tensor for key, tensor in tensors.items()
        }
        for name, tensors in models.items()
    }, union


@dataclass(frozen=True)
class Anarcii:
    """The package's folder, and what this example takes from it.

    Attributes:
        folder: The folder of the package.
    """

    folder: Path

    @cached_property
    def _network(self) -> ModuleType:
        return _execute(self.folder / "inference" / "model.py")

    @cached_property
    def _tokenizers(self) -> ModuleType:
        return _execute(self.folder / "input_data_processing" / "tokeniser.py")

    def tokenizer(self, kind: str) -> Any:
        """Return the package's tokenizer, such as `protein_antibody` or `number_tcr`."""
        return self._tokenizers.NumberingTokeniser(kind)

    def words(self) -> dict[str, list[Word]]:
        """Return model -> its target words."""
        numbers = {name: "tcr" if name == "tcr" else "antibody" for name in TYPES}
        return {name: list(self.tokenizer(f"number_{of}").vocab) for name, of in numbers.items()}

    def weights(self) -> dict[str, Weights]:
        """Return model -> its tensors, as the package has them."""
        # The files were saved on a GPU.
        return {
            name: torch.load(
                self.folder / "models" / of / f"{of}_{HEADS}_{LAYERS}_{SIZE}_{HIDDEN}.pt",
                map_location="cpu",
                weights_only=True,
            )
            for name, of in TYPES.items()
        }

    def make_model(self, weights: Weights) -> Any:
        """Return the network with the given tensors, in evaluation mode."""
        encoder, decoder = (
            part(count, SIZE, LAYERS, HEADS, HIDDEN, DROPOUT, "cpu")
            for part, count in (
                (self._network.Encoder, len(weights["encoder.tok_embedding.weight"])),
                (self._network.Decoder, len(weights["decoder.tok_embedding.weight"])),
            )
        )
        model = self._network.S2S(encoder, decoder, 0, 0, "cpu")  # word 0 is padding
        model.load_state_dict(weights)
        return model.eval()


@dataclass(frozen=True)
class Numbering:
    """How models number domains.

    Attributes:
        anarcii: The package.
        words: The target words of the models.
    """

    anarcii: Anarcii
    words: Sequence[Word]

    @cached_property
    def _letters(self) -> Any:
        return self.anarcii.tokenizer("protein_antibody")  # all models have the same

    def number(
        self, weights: Weights, domains: Sequence[Domain], give_up: bool = False
    ) -> tuple[list[str], list[list[int | None]]]:
        """Return the chain of each domain, and the position of each of its residues.

        Args:
            weights: A model whose target words are `words`.
            domains: Domains; their own numbers, if they are known, only save time.
            give_up: Whether what stands behind a domain's first wrong number does not matter, which
                saves most of the time where many are wrong.

        Returns:
            The first word that the model writes, and for each residue a position from 1 to 128, or
            None for any other word and behind the end that the model writes.
        """
        sources = [
            torch.from_numpy(self._letters.encode(["<SOS>", *domain.residues, "<EOS>"])).long()
            for domain in domains
        ]
        source = pad_sequence(sources, batch_first=True)
        lengths = torch.tensor([len(each) for each in sources])
        guess = pad_sequence([self._guess(domain) for domain in domains], batch_first=True)
        known = torch.tensor([isinstance(word, int) for word in self.words])
        wanted = torch.where(known[guess], guess, -1) if give_up else torch.full_like(guess, -1)
        model = self.anarcii.make_model(weights)
        found = decode(model, source, guess, lengths, self._index("<EOS>"), wanted)
        return self._read(found, domains)

    def _index(self, word: Word) -> int:
        return self.words.index(word)

    def _guess(self, domain: Domain) -> torch.Tensor:
        chain = domain.chain if domain.chain in self.words else self.words[-1]
        written = ["<SOS>", chain, *(number or "X" for number in domain.numbers), "<EOS>"]
        return torch.tensor([self._index(word) for word in written])

    def _read(
        self, found: torch.Tensor, domains: Sequence[Domain]
    ) -> tuple[list[str], list[list[int | None]]]:
        chains, numbers = [], []
        for row, domain in zip(found.tolist(), domains, strict=True):
            chains.append(str(self.words[row[1]]))
            written = [self.words[index] for index in row[2 : 2 + len(domain.residues)]]
            end = written.index("<EOS>") if "<EOS>" in written else len(written)
            positions = [word if isinstance(word, int) else None for word in written[:end]]
            numbers.append(positions + [None] * (len(written) - end))
        return chains, numbers


@torch.no_grad()
def decode(
    model: Any,
    source: torch.Tensor,
    guess: torch.Tensor,
    lengths: torch.Tensor,
    end: int,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """Return what greedy decoding writes, found by repeated correction of a guess.

    Each pass replaces every word by the likeliest one behind the words before it. What no longer
    changes from the start of a row on is what decoding word by word writes, whatever the guess, so
    a good guess saves most of the time. Rows that change for too long are decoded word by word.

    Args:
        model: ANARCII's network.
        source: Letters, (domains, letters), int64; 0 is padding.
        guess: Words, (domains, letters + 1), int64, the first being the start.
        lengths: Letters of each domain, with start and end, (domains,).
        end: The word behind which nothing counts.
        wanted: Words of which the first that is missed ends a row, in the shape of `guess`; -1
            where any word will do.

    Returns:
        (domains, letters + 1) int64; right up to the first `end` of a row, its first missed word,
        or its length.
    """
    words = guess.clone()
    mask = model.make_src_mask(source)
    encoded = model.encoder(source, mask)
    counted = torch.arange(1, words.shape[1])[None] <= lengths[:, None]
    rows = torch.arange(len(words))
    # All words follow from the first, the chain, which models confuse more than numbers.
    padding, causal = model.make_trg_mask(words[:, :1])
    words[:, 1:2] = model.decoder(words[:, :1], encoded, padding, causal, mask)[0].argmax(dim=-1)
    for _ in range(PASSES):
        before = words[rows, :-1]
        padding, causal = model.make_trg_mask(before)
        scores, _ = model.decoder(before, encoded[rows], padding, causal, mask[rows])
        likeliest = scores.argmax(dim=-1)
        ended = (likeliest == end).cumsum(dim=1) - (likeliest == end).long() > 0
        changed = (likeliest != words[rows, 1:]) & ~ended & counted[rows]
        words[rows, 1:] = likeliest
        # The first word that changes follows from words that do not, so it is final.
        final = changed.cumsum(dim=1) - changed.long() == 0
        missed = (likeliest != wanted[rows, 1:]) & (wanted[rows, 1:] >= 0) & final
        rows = rows[changed.any(dim=1) & ~missed.any(dim=1)]
        if not len(rows):
            return words
    words[rows] = _decode_by_word(model, encoded[rows], mask[rows], words[rows])
    return words


def _decode_by_word(
    model: Any, encoded: torch.Tensor, mask: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Return what greedy decoding writes behind the first words, in the shape of `words`."""
    written, cache = words[:, :1], None
    for _ in range(1, words.shape[1]):
        # The network asks for a mask of all words so far, and with a cache for the last word alone.
        padding, causal = model.make_trg_mask(written)
        scores, cache = model.decoder(written[:, -1:], encoded, padding, causal, mask, cache)
        written = torch.cat([written, scores[:, -1:].argmax(dim=-1)], dim=1)
    return written


def _execute(path: Path) -> ModuleType:
    specification = spec_from_file_location(f"anarcii_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
