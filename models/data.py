"""From text to tokens: a byte-level BPE vocabulary and two token files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from wattbit.errors import WattbitError
from wattbit.files import atomic, read_json, write_json, write_text
from wattbit.models.corpus import read_corpus
from wattbit.progress import Progress, silent

SMALLEST_VOCABULARY = 256  # the bytes
PIECE = 50_000  # characters
LARGEST_VOCABULARY = 2**16  # tokens are stored in 16 bits

Tokens = NDArray[np.uint16]


def prepare(source: str | None, out: Path, vocab_size: int, progress: Progress = silent) -> dict[str, Any]:
    """Write `vocab.json`, `train.npy`, `valid.npy` (uint16 [n]) and `data.json` to `out`; return the latter's content.

    source: None for the Python standard library's sources, a folder, or a corpus name (see `wattbit.models.corpus`).
    Raises WattbitError for an unusable corpus or vocabulary size.
    """
    if not SMALLEST_VOCABULARY < vocab_size <= LARGEST_VOCABULARY:
        raise WattbitError(
            f"vocab_size must be {SMALLEST_VOCABULARY + 1}..{LARGEST_VOCABULARY} (bytes and merges), not {vocab_size}"
        )
    progress("read corpus", 0, 3)
    corpus = read_corpus(source)
    progress("learn vocabulary", 1, 3)
    tokenizer = _learn(corpus.train, vocab_size)
    progress("encode", 2, 3)
    tokens = {"train": encode(tokenizer, corpus.train), "valid": encode(tokenizer, corpus.valid)}
    write_text(out / "vocab.json", tokenizer.to_str())
    for name, values in tokens.items():
        with atomic(out / f"{name}.npy") as temporary:
            np.save(temporary, values)
    record = {
        "corpus": corpus.name,
        "characters": {
            name: sum(map(len, texts)) for name, texts in (("train", corpus.train), ("valid", corpus.valid))
        },
        "texts": {"train": len(corpus.train), "valid": len(corpus.valid)},
        "tokens": {name: len(values) for name, values in tokens.items()},
        "vocab_size": vocab_size,
        "digest": hashlib.sha256(b"".join(values.tobytes() for values in tokens.values())).hexdigest()[:16],
    }
    write_json(out / "data.json", record)  # last: its presence says that the rest is there
    progress("encode", 3, 3)
    return record


def _pieces(texts: list[str]) -> Iterator[str]:
    """The texts, cut after line ends into pieces of at least `PIECE`, so that all cores encode a corpus of one text."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE:
            end = text.find("\n", start + PIECE) + 1 or len(text)
            yield text[start:end]
            start = end
        yield text[start:]


def _learn(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tokens:
    """Tokens [n] of texts that follow each other."""
    encodings = tokenizer.encode_batch_fast(list(_pieces(texts)), add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, dtype=np.uint16) for encoding in encodings])


def load_vocabulary(data: Path) -> Tokenizer:
    """The vocabulary that `prepare` wrote to `data`."""
    path = data / "vocab.json"
    if not path.is_file():
        raise WattbitError(f"{path} does not exist; run the data stage")
    return Tokenizer.from_file(str(path))


def load_tokens(data: Path, split: str, needed: int) -> Tokens:
    """Tokens [n] of "train" or "valid"; WattbitError if they are fewer than `needed`."""
    record = read_json(data / "data.json")
    path = data / f"{split}.npy"
    try:
        tokens: Tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WattbitError(f"{path} cannot be read ({error}); delete {data} and run the data stage again") from None
    if len(tokens) != record["tokens"][split]:
        raise WattbitError(f"{path} has {len(tokens)} tokens, not {record['tokens'][split]}; run the data stage again")
    if len(tokens) < needed:
        raise WattbitError(f"the {split} split has {len(tokens)} tokens, at least {needed} are needed; take more text")
    return tokens
