"""A tiny Llama, made from a seed: the embedded default model.

It has what a downloaded model has (configuration, weights, tokenizer, chat template, generation settings, licence,
README), so that every later step treats it alike. Its weights are random and its words are invented, so nothing of it
belongs to anybody. Its output is noise of exact length: the model can only emit whole words that the tokenizer reads
back as the same single token, and never an end-of-sequence token, so a request for N tokens yields N tokens and a
client that counts tokens by reading the text counts what the server counted.

Files are those that transformers and vLLM read: https://huggingface.co/docs/transformers (Llama, tokenizers) and
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from berth.errors import BerthError
from berth.fsio import fsync_dir, write_json, write_text
from berth.manifest import Manifest, build_manifest, list_tree, read_manifest, tree_problems, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LICENCE = "CC0-1.0"
BOS, EOS, PAD = 1, 2, 3
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"
_WORDS = 8000
_SENTENCES = 4000
# How a byte-level tokenizer writes the space before a word.
_SPACE = "\u0120"
# The smallest vocabulary: every byte, the special tokens, and words enough to say something.
_MIN_VOCAB = 512
_MIN_WORD_TOKENS = 100


@dataclass(frozen=True)
class TinyShape:
    """The numbers that define the model; two equal shapes give the same bytes."""

    seed: int = 0
    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 352
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    max_position: int = 4096


def build_tokenizer(seed: int = 0, vocab_size: int = 4096) -> Tokenizer:
    """A byte-level BPE tokenizer trained on invented sentences; it puts `<s>` before a text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(seed), trainer)
    # Every identifier that the model has a row for must decode to something.
    tokenizer.add_tokens([f" filler{number}" for number in range(vocab_size - tokenizer.get_vocab_size())])
    return tokenizer


def word_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that are " word" and that the tokenizer reads back as that one token, in the tokenizer's order."""
    found = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if written is None or not written.startswith(_SPACE):
            continue
        word = written[1:]
        if word.isascii() and word.isalpha() and tokenizer.encode(" " + word, add_special_tokens=False).ids == [token]:
            found.append(token)
    return tuple(found)


def _sentences(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    words = [
        "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 5))) for _ in range(_WORDS)
    ]
    # Words of natural languages follow Zipf's law, and with it the merges become words rather than syllables.
    weights = [1 / rank for rank in range(1, _WORDS + 1)]
    for _ in range(_SENTENCES):
        sentence = " ".join(rng.choices(words, weights, k=rng.randint(5, 25)))
        yield sentence.capitalize() + rng.choice((".", "?", "!", ", 12.", ": 2024"))


def build_weights(shape: TinyShape, allowed: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Random Llama weights that can only emit the `allowed` tokens.

    Channel 0 of the residual stream is a positive constant that no layer writes to; the output rows of all other
    tokens have a large negative weight on it. This needs no bias, which the Llama architecture does not have.
    """
    rng = np.random.default_rng(shape.seed)

    def normal(rows: int, columns: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    def ones() -> NDArray[np.float32]:
        return np.ones(shape.hidden_size, dtype=np.float32)

    head_size = shape.hidden_size // shape.heads
    banned = np.ones(shape.vocab_size, dtype=bool)
    banned[list(allowed)] = False
    weights = {
        "model.embed_tokens.weight": normal(shape.vocab_size, shape.hidden_size),
        "lm_head.weight": normal(shape.vocab_size, shape.hidden_size),
        "model.norm.weight": ones(),
    }
    weights["model.embed_tokens.weight"][:, 0] = 0.05
    weights["lm_head.weight"][:, 0] = np.where(banned, -20, 0)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        block = {
            "self_attn.q_proj.weight": normal(shape.heads * head_size, shape.hidden_size),
            "self_attn.k_proj.weight": normal(shape.kv_heads * head_size, shape.hidden_size),
            "self_attn.v_proj.weight": normal(shape.kv_heads * head_size, shape.hidden_size),
            "self_attn.o_proj.weight": normal(shape.hidden_size, shape.heads * head_size),
            "mlp.gate_proj.weight": normal(shape.intermediate_size, shape.hidden_size),
            "mlp.up_proj.weight": normal(shape.intermediate_size, shape.hidden_size),
            "mlp.down_proj.weight": normal(shape.hidden_size, shape.intermediate_size),
            "input_layernorm.weight": ones(),
            "post_attention_layernorm.weight": ones(),
        }
        block["self_attn.o_proj.weight"][0] = 0
        block["mlp.down_proj.weight"][0] = 0
        weights |= {prefix + name: array for name, array in block.items()}
    return weights


def generate_model(
    *,
    dest: Path,
    manifest_path: Path,
    seed: int = 0,
    vocab_size: int = 4096,
    hidden_size: int = 128,
    intermediate_size: int = 352,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    max_position: int = 4096,
    name: str = "berth/tiny-llama",
) -> Manifest:
    """Write the model into `dest` and its manifest to `manifest_path`, the manifest last.

    `name` stands in the manifest where a downloaded model has its repository. The same arguments give the same bytes.
    A model that is there already and matches its manifest is left alone.

    Raises:
        BerthError: a number that does not fit the others, or a `dest` that holds something else.
    """
    shape = TinyShape(seed, vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, max_position)
    _check(shape)
    source = {"kind": "generate", "repo": name, "revision": None, "licence": LICENCE, "shape": asdict(shape)}
    existing = _existing(dest, manifest_path, source)
    if existing is not None:
        logger.info("The generated model in %s is complete.", dest)
        return existing
    temporary = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, shape)
        manifest_path.unlink(missing_ok=True)
        if dest.exists():
            shutil.rmtree(dest)
        temporary.rename(dest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_dir(dest.parent)
    manifest = build_manifest(dest, source)
    write_manifest(manifest_path, manifest)
    logger.info("Generated the model %s in %s (%d bytes).", name, dest, manifest.total_bytes)
    return manifest


def _check(shape: TinyShape) -> None:
    for key, value in asdict(shape).items():
        if value < (0 if key == "seed" else 1):
            raise BerthError(f"Generated model: {key} is {value}, and must be positive.")
    if shape.vocab_size < _MIN_VOCAB:
        raise BerthError(f"Generated model: vocab_size is {shape.vocab_size}, and must be at least {_MIN_VOCAB}.")
    if shape.hidden_size % (2 * shape.heads) or shape.heads % shape.kv_heads:
        raise BerthError(
            f"Generated model: hidden_size {shape.hidden_size} must be a multiple of twice heads ({shape.heads}), "
            f"and heads a multiple of kv_heads ({shape.kv_heads})."
        )


def _existing(dest: Path, manifest_path: Path, source: dict[str, Any]) -> Manifest | None:
    """The manifest of a whole model of this source, or None where it may be made (again)."""
    if not dest.exists() or (dest.is_dir() and not list_tree(dest)):
        return None
    if not manifest_path.exists():
        raise BerthError(
            f"{dest} has files and no manifest at {manifest_path}, so they are not Berth's: move them away, "
            "or configure another directory for the model."
        )
    manifest = read_manifest(manifest_path)
    if manifest.source.get("kind") != "generate":
        raise BerthError(f"{dest} holds {manifest.source.get('repo')}, which was not generated: use another directory.")
    return manifest if manifest.source == source and not tree_problems(dest, manifest) else None


def _write(root: Path, shape: TinyShape) -> None:
    tokenizer = build_tokenizer(shape.seed, shape.vocab_size)
    allowed = word_tokens(tokenizer)
    if tokenizer.get_vocab_size() != shape.vocab_size or len(allowed) < _MIN_WORD_TOKENS:
        raise BerthError(
            f"Generated model: vocab_size {shape.vocab_size} leaves {len(allowed)} words; use at least {_MIN_VOCAB}."
        )
    weights = build_weights(shape, allowed)
    save_file(weights, str(root / "model.safetensors"), metadata={"format": "pt"})
    write_text(root / "tokenizer.json", tokenizer.to_str(pretty=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    write_json(root / "special_tokens_map.json", names)
    write_json(
        root / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": shape.max_position,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_text(root / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(root / "generation_config.json", {**ids, "do_sample": True, "temperature": 1.0})
    write_json(
        root / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.hidden_size // shape.heads,
            "max_position_embeddings": shape.max_position,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "use_cache": True,
            **ids,
        },
    )
    parameters = sum(array.size for array in weights.values())
    write_text(root / "LICENSE", f"{LICENCE}: random weights and invented words; no rights reserved.\n")
    write_text(root / "README.md", _readme(shape, parameters))


def _readme(shape: TinyShape, parameters: int) -> str:
    return (
        "---\n"
        f"license: {LICENCE.lower()}\n"
        "library_name: transformers\n"
        "pipeline_tag: text-generation\n"
        "---\n"
        "# Tiny random Llama\n\n"
        f"{parameters:,} parameters, random from seed {shape.seed}; the tokenizer is trained on invented words.\n"
        "Made by Berth to try the serving path. Its output is noise of exactly the length that was asked for.\n\n"
        f"```json\n{json.dumps(asdict(shape))}\n```\n"
    )
