"""The probe of a step: a few of its own tokens, scored by the trainer before and after the update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_core.step import PROBE_SEQUENCES, PROBE_TOKENS, Probe, StepConfig
from art_torch.train.pass_model import PassModel
from art_torch.train.scoring import score_tokens

_ROW_TOKENS = PROBE_TOKENS // PROBE_SEQUENCES


@dataclass(frozen=True, eq=False)
class ProbeRows:
    """The rows and tokens of a batch that its probe scores."""

    batch: TrainBatch
    rows: tuple[int, ...]
    """At most `PROBE_SEQUENCES`; none where the batch has no sampled token."""
    scored_BT: NDArray[np.bool_]
    """The first sampled tokens of those rows, at most `PROBE_TOKENS` together."""

    @classmethod
    def choose(cls, batch: TrainBatch, trained_B: NDArray[np.bool_]) -> ProbeRows:
        """Choose the rows that will move most visibly: with an advantage first, then with more tokens, then short.

        Args:
            batch: The step's batch.
            trained_B: Which rows have an advantage.
        """
        scored_BT = batch.loss_mask_BT & (batch.loss_mask_BT.cumsum(axis=1) <= _ROW_TOKENS)
        count_B = scored_BT.sum(axis=1)
        last_B = np.where(scored_BT, np.arange(scored_BT.shape[1]), 0).max(axis=1)
        order_B = np.lexsort((last_B, -count_B, ~trained_B))
        rows = tuple(int(row) for row in order_B[:PROBE_SEQUENCES] if count_B[row])
        return cls(batch, rows, scored_BT & np.isin(np.arange(len(count_B)), rows)[:, None])

    def seen(self, logprobs_BT: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...] | None:
        """What `score` would give, out of logprobs that the step's passes have computed anyway.

        Args:
            logprobs_BT: At each token's own temperature; NaN where not computed.

        Returns:
            None where a token is missing, or was sampled at another temperature than 1.
        """
        wanted = logprobs_BT[self.scored_BT]
        if np.isnan(wanted).any() or (self.batch.temperatures_BT[self.scored_BT] != 1).any():
            return None
        return self._cut(np.where(self.scored_BT, logprobs_BT, np.float32(0)))

    def score(self, model: PassModel, config: StepConfig) -> tuple[NDArray[np.float32], ...]:
        """Logprobs at temperature 1 under the model's present weights, one array per row; 0 where not scored.

        Args:
            model: The trainer's.
            config: How much goes into one forward pass.
        """
        one_BT = np.ones(self.scored_BT.shape, np.float32)
        logprobs_BT = score_tokens(model, replace(self.batch, temperatures_BT=one_BT), self.scored_BT, config)
        return self._cut(np.where(self.scored_BT, logprobs_BT, np.float32(0)))

    def probe(self, before: tuple[NDArray[np.float32], ...], after: tuple[NDArray[np.float32], ...]) -> Probe:
        """Put together what `score` gave before and after the update."""
        return Probe(
            tokens=tuple(self.batch.tokens_BT[row, : self._length(row)] for row in self.rows),
            scored=tuple(self.scored_BT[row, : self._length(row)] for row in self.rows),
            before=before,
            after=after,
        )

    def _cut(self, logprobs_BT: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return tuple(logprobs_BT[row, : self._length(row)] for row in self.rows)

    def _length(self, row: int) -> int:
        return int(np.flatnonzero(self.scored_BT[row])[-1]) + 1
