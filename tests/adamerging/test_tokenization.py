"""Where completions begin, by a tokenizer of which a token may hold the end of a prompt."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from dppa_mergekit.adamerging.tokenization import completion_loss
from dppa_mergekit.errors import DppaError
from dppa_mergekit.prompts import Prompt


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens of words begin with a blank."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trained.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet())
    trained.train_from_iterator(["The capital of France is Paris"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("The capital of France is", " Paris"),
        # The last blank of the prompt is the first character of a token.
        ("The capital of France is ", "Paris"),
    ],
)
def test_all_tokens_of_a_completion_count(
    tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str
) -> None:
    model = SimpleNamespace(config=LlamaConfig())
    loss = completion_loss("law", [Prompt(prompt, completion)], model, tokenizer)  # type: ignore[arg-type]
    counted = tokenizer.decode(loss.examples[0][loss.begins[0] :])
    assert counted == " Paris"


def test_a_prompt_within_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    model = SimpleNamespace(config=LlamaConfig())
    with pytest.raises(DppaError, match=r"'The' or its completion has no token of its own\."):
        completion_loss("law", [Prompt("The", "")], model, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(DppaError, match=r"'Th' or its completion has no token of its own\."):
        completion_loss("law", [Prompt("Th", "e")], model, tokenizer)  # type: ignore[arg-type]
