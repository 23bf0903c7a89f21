"""Leases on the real backend: an old step answers for as long as somebody holds it, and comes back when asked for."""

from __future__ import annotations

import pytest

from art_core.errors import NoRouteError
from tests.conftest import Real
from tests.flow.agent import constant, gather

pytestmark = pytest.mark.real


async def answered_by(real: Real, name: str) -> str:
    completion = await real.model.openai_client().chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
    )
    return completion.model


async def served(real: Real) -> set[int]:
    names = [each.id async for each in real.model.openai_client().models.list()]
    return {int(name.partition("@")[2]) for name in names if "@" in name}


async def test_an_old_step_is_held_brought_back_and_never_deleted(real: Real) -> None:
    model, backend = real.model, real.backend
    checkpoints = real.root / "tests" / "models" / "facts" / "checkpoints"
    groups = await gather(model, constant, questions=["Tom is 12 years old."], runs=1)
    held = await model.get_step()
    async with backend.adapter_lease(model, held):
        for _ in range(4):  # as many as the engine has slots: without the lease the step would be gone
            await backend.train(model, groups)
        assert await model.get_step() == held + 4
        assert model.get_inference_name() == f"facts@{held}", "inside, the name is the leased step's"
        assert await answered_by(real, model.get_inference_name()) == f"facts@{held}"
        await model.delete_checkpoints()
        assert (checkpoints / f"{held:04d}").is_dir()
        assert await answered_by(real, model.get_inference_name()) == f"facts@{held}"
    assert model.get_inference_name() == f"facts@{held + 4}"

    for _ in range(4):
        await backend.train(model, groups)
    newest = await model.get_step()
    with pytest.raises(NoRouteError, match=f"step {held} of 'facts' is not served"):
        async with backend.adapter_lease(model, held):
            pytest.fail("a step that is not served was leased")
    async with backend.exact_adapter_lease(model, held):
        assert await answered_by(real, model.get_inference_name()) == f"facts@{held}"
        assert await answered_by(real, model.name) == f"facts@{newest}", "the plain name follows the newest step"
        assert await model.get_step() == newest
        assert (await backend.train(model, groups)).metrics["publish/proved"] == 1.0
    leased = await model.get_step()
    async with backend.adapter_retention_lease(model, leased):
        await backend.train(model, groups)
        newest = await model.get_step()
        assert model.get_inference_name() == f"facts@{newest}", "the name is not the leased step's"
        await backend.train(model, groups)
        newest = await model.get_step()
        await backend.prune_model_adapters(model, retain_steps={newest - 1, newest + 100})
        assert await served(real) == {leased, newest - 1, newest} and leased == newest - 2, (
            "leased, retained, the default"
        )
    await backend.prune_model_adapters(model, retain_steps=set())
    assert await served(real) == {newest}
    with pytest.raises(NoRouteError, match="neither served nor stored"):
        async with backend.exact_adapter_lease(model, newest + 100):
            pytest.fail("a step that does not exist was leased")
