"""Choose the next tokens from logits, and say how likely each was."""

from __future__ import annotations

import torch

from art_core.tokenization import GREEDY_BELOW
from art_torch.serve.sequence import Sequence, TokenLogprob


def sample(logits_RV: torch.Tensor, sequences: list[Sequence]) -> list[TokenLogprob]:
    """Sample one token for each sequence.

    The logprobs are of softmax(logits / temperature) before top-p and top-k; for greedy rows at temperature 1.

    Args:
        logits_RV: One row of float logits per sequence; changed in place.
        sequences: What to sample for; each is asked for one uniform number.
    """
    settings = [sequence.sampling for sequence in sequences]
    for row, sequence in enumerate(sequences):
        if sequence.sampled < sequence.sampling.min_tokens:
            logits_RV[row, list(sequence.sampling.stop_token_ids)] = float("-inf")
    greedy = [s.temperature < GREEDY_BELOW for s in settings]
    if any(s.temperature != 1.0 and not g for s, g in zip(settings, greedy, strict=True)):
        factors = [1.0 if g else 1.0 / s.temperature for s, g in zip(settings, greedy, strict=True)]
        logits_RV.mul_(torch.tensor(factors, device=logits_RV.device)[:, None])
    logprobs_RV = logits_RV.log_softmax(-1)
    tokens_R = _choose(logprobs_RV, sequences, greedy)
    chosen_R = logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
    tops = _likeliest(logprobs_RV, [s.logprobs or 0 for s in settings])
    return [
        TokenLogprob(token, logprob, top=top)
        for token, logprob, top in zip(tokens_R.tolist(), chosen_R.tolist(), tops, strict=True)
    ]


def score(logits_TV: torch.Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    """What the model says of given tokens, at temperature 1.

    Args:
        logits_TV: Float logits at the position before each token.
        tokens: T token ids.
        top: Number of likeliest tokens to report.
    """
    tokens_T1 = torch.tensor(tokens, device=logits_TV.device)[:, None]
    chosen_T1 = logits_TV.gather(1, tokens_T1)
    total_T1 = logits_TV.logsumexp(-1, keepdim=True)
    ranks = (logits_TV > chosen_T1).sum(-1).add_(1).tolist()
    logprobs = (chosen_T1 - total_T1)[:, 0].tolist()
    best = logits_TV.topk(top, dim=-1) if top else None
    rows = []
    for t, token in enumerate(tokens):
        likeliest = (
            tuple(zip(best.indices[t].tolist(), (best.values[t] - total_T1[t]).tolist(), strict=True)) if best else ()
        )
        rows.append(TokenLogprob(token, logprobs[t], ranks[t], likeliest))
    return rows


def _choose(logprobs_RV: torch.Tensor, sequences: list[Sequence], greedy: list[bool]) -> torch.Tensor:
    if all(greedy):
        return logprobs_RV.argmax(-1)
    uniform_R1 = torch.tensor([s.draw() for s in sequences], dtype=torch.float64, device=logprobs_RV.device)[:, None]
    tokens_R = _invert(logprobs_RV.exp(), uniform_R1)
    for row, sequence in enumerate(sequences):
        if greedy[row]:
            tokens_R[row] = logprobs_RV[row].argmax()
        elif sequence.sampling.top_p < 1.0 or sequence.sampling.top_k > 0:
            tokens_R[row] = _truncated(logprobs_RV[row], sequence, uniform_R1[row])
    return tokens_R


def _truncated(logprobs_V: torch.Tensor, sequence: Sequence, uniform_1: torch.Tensor) -> torch.Tensor:
    probs_V, order_V = logprobs_V.exp().sort(descending=True)
    kept = len(probs_V)
    if sequence.sampling.top_k > 0:
        kept = min(kept, sequence.sampling.top_k)
    probs_V = probs_V[:kept]
    if sequence.sampling.top_p < 1.0:
        before_V = probs_V.double().cumsum(0) - probs_V
        probs_V = probs_V[: max(1, int((before_V < sequence.sampling.top_p).sum()))]
    return order_V[_invert(probs_V[None], uniform_1[None])[0]]


def _invert(probs_RV: torch.Tensor, uniform_R1: torch.Tensor) -> torch.Tensor:
    """Inverse of the cumulative distribution: one draw per row from one uniform number, in double precision."""
    sums_RV = probs_RV.double().cumsum(-1)
    found_R1 = torch.searchsorted(sums_RV, uniform_R1 * sums_RV[:, -1:], right=True)
    return found_R1[:, 0].clamp_(max=probs_RV.shape[1] - 1)


def _likeliest(logprobs_RV: torch.Tensor, counts: list[int]) -> list[tuple[tuple[int, float], ...]]:
    most = max(counts)
    if most == 0:
        return [()] * len(counts)
    values, indices = (tensor.tolist() for tensor in logprobs_RV.topk(most, dim=-1))
    return [tuple(zip(indices[r], values[r], strict=True))[:count] for r, count in enumerate(counts)]
