"""One forward pass of the base model over tokens of many rows and adapters at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, PreTrainedModel

from art_core.errors import ConfigError
from art_torch.serve.kv_cache import KVCache, LayerShape
from art_torch.serve.lora_slot import BASE_SLOT, Segments
from art_torch.serve.row_attention import ROW_ATTENTION, Chunk, RowPlan

_PROBE_ATTENTION = "art_probe"


class Logits(Enum):
    """Which of a span's tokens logits are wanted for."""

    NONE = 0
    LAST = 1
    ALL = 2


@dataclass(frozen=True)
class Span:
    """The tokens that one row computes in one pass."""

    slot: int
    start: int
    """Position of the first one; everything before it stands in the row."""
    tokens: NDArray[np.int32]
    logits: Logits

    @property
    def logits_wanted(self) -> int:
        """Number of tokens that logits are wanted for."""
        return {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: len(self.tokens)}[self.logits]


class ModelRunner:
    """Runs a model whose attention has been replaced by the row attention."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, segments: Segments) -> None:
        self._model: Any = model
        self._model.set_attn_implementation(ROW_ATTENTION)
        self._cache = cache
        self._segments = segments
        self._device = model.device

    def forward(self, spans: Sequence[Span]) -> torch.Tensor:
        """Compute one span per row; afterwards its keys and values stand in the row.

        Args:
            spans: For rows 0, 1, 2 and so on; the cache has room for them.

        Returns:
            Float logits (K, vocabulary), K the tokens that want them, in the order of the spans.
        """
        order = sorted(range(len(spans)), key=lambda row: spans[row].slot)
        first_R = np.zeros(len(spans), np.int64)
        counts = np.array([len(span.tokens) for span in spans])
        first_R[order] = np.concatenate(([0], np.cumsum(counts[order])[:-1]))
        self._segments.current = _segments(spans, order)
        positions = np.concatenate([np.arange(spans[r].start, spans[r].start + counts[r]) for r in order])
        plan = self._plan(spans, order, first_R, positions)
        out = self._model(
            input_ids=self._tensor(np.concatenate([spans[r].tokens for r in order]).astype(np.int64))[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(_wanted(spans, first_R)),
            plan=plan,
        )
        logits: torch.Tensor = out.logits[0]
        return logits.float()

    def _plan(
        self, spans: Sequence[Span], order: list[int], first_R: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> RowPlan:
        counts = np.array([len(span.tokens) for span in spans])
        rows_N = np.repeat(np.array(order), counts[order])
        last_R = first_R + counts - 1
        lengths = np.array([span.start for span in spans]) + counts
        identity = bool((last_R == np.arange(len(spans))).all() and (counts == 1).all())
        return RowPlan(
            cache=self._cache,
            write_N=self._tensor(rows_N * self._cache.capacity + positions),
            query_R=None if identity else self._tensor(last_R),
            length_R=self._tensor(lengths),
            longest=int(lengths.max()),
            same_length=bool((lengths == lengths[0]).all()),
            decodes=bool((counts == 1).any()),
            chunks=tuple(
                Chunk(row, int(first_R[row]), len(span.tokens), span.start)
                for row, span in enumerate(spans)
                if len(span.tokens) > 1
            ),
        )

    def _tensor(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def probe_layers(model: PreTrainedModel) -> list[LayerShape]:
    """Run one token through the model and note what each attention layer would keep of it.

    Raises:
        ConfigError: The model's attention can't be replaced, or it needs more than keys and values.
    """
    shapes: dict[int, LayerShape] = {}

    def record(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: object, **given: Any
    ) -> tuple[torch.Tensor, None]:
        for extra in ("softcap", "s_aux", "position_bias"):
            if given.get(extra) is not None:
                raise ConfigError(f"the model's attention uses {extra!r}, which this engine does not compute")
        shapes[module.layer_idx] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_PROBE_ATTENTION, record)
    changeable: Any = model
    changeable.set_attn_implementation(_PROBE_ATTENTION)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        changeable(input_ids=token, position_ids=token, use_cache=False)
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(shapes) != list(range(layers)):
        raise ConfigError(
            f"{type(model).__name__} has {layers} layers, of which {len(shapes)} use attention that can be replaced; "
            "this engine needs all (no state-space or hybrid models)"
        )
    return [shapes[index] for index in range(layers)]


def _segments(spans: Sequence[Span], order: list[int]) -> list[tuple[int, int, int]]:
    segments, first = [], 0
    for slot, rows in itertools.groupby(order, key=lambda row: spans[row].slot):
        stop = first + sum(len(spans[row].tokens) for row in rows)
        if slot != BASE_SLOT:
            segments.append((slot, first, stop))
        first = stop
    return segments


def _wanted(spans: Sequence[Span], first_R: NDArray[np.int64]) -> NDArray[np.int64]:
    wanted = [np.empty(0, np.int64)]
    for span, first in zip(spans, first_R, strict=True):
        stop = first + len(span.tokens)
        wanted.append(np.arange(stop - span.logits_wanted, stop))
    return np.concatenate(wanted)
