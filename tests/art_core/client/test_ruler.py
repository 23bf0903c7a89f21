"""RULER against a judge over real HTTP that says what the test wants; how well a real judge ranks is not tested."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

import art
from art.rewards import ruler, ruler_score_group
from art_core.errors import ConfigError, RunError
from tests.art_core.client.chat_endpoint import Body, ChatEndpoint, chat_endpoint, completion
from tests.art_core.rollout import choice

GOAL: Any = {"role": "system", "content": "Tell a joke."}
JUDGE = "openai/judge-1"


def verdict(*scores: float, first: int = 1) -> str:
    entries = [
        {"trajectory_id": str(n), "explanation": f"because {s}", "score": s} for n, s in enumerate(scores, first)
    ]
    return json.dumps({"scores": entries})


def group(*rewards: float, **fields: Any) -> art.TrajectoryGroup:
    return art.TrajectoryGroup(
        [
            art.Trajectory(messages_and_choices=[GOAL, choice([1], [n])], reward=reward, logs=["own"], metrics={"m": n})
            for n, reward in enumerate(rewards)
        ],
        **fields,
    )


def at(endpoint: ChatEndpoint, **params: Any) -> dict[str, Any]:
    return {"base_url": endpoint.base_url, **params}


async def test_scores_become_rewards_and_nothing_is_lost() -> None:
    given = group(3.0, 0.0, metadata={"task": 1}, metrics={"g": 1.0}, exceptions=[ValueError("x")])
    before = given.model_dump()
    with chat_endpoint(lambda request: completion(verdict(0.9, 0.1))) as judge:
        judged = await ruler_score_group(given, JUDGE, at(judge, api_key="secret", temperature=0.3, max_tokens=99))
    assert judged is not None
    assert [t.reward for t in judged] == [0.9, 0.1]
    assert judged.trajectories[0].metrics == {"m": 0, "independent_reward": 3.0, "ruler_score": 0.9}
    assert judged.trajectories[0].logs == ["own", "RULER explanation: because 0.9"]
    assert (judged.metadata, judged.metrics, len(judged.exceptions)) == ({"task": 1}, {"g": 1.0}, 1)
    assert judged.trajectories[0].messages_and_choices == given.trajectories[0].messages_and_choices
    assert given.model_dump() == before, "the group that was given is not changed"
    for trajectory in judged.trajectories:  # as the documentation combines the two
        trajectory.reward += trajectory.metrics["independent_reward"]
    assert [t.reward for t in judged] == [3.9, 0.1]
    (request,) = judge.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0.3, 99)
    assert judge.headers[0]["authorization"] == "Bearer secret"


async def test_the_judge_sees_the_rubric_the_tools_and_what_all_share_once() -> None:
    tools: Any = [{"type": "function", "function": {"name": "look_up"}}]
    chats: Any = [[GOAL, {"role": "assistant", "content": text}] for text in ("one", "two", "two")]
    with chat_endpoint(lambda request: completion(verdict(1, 0, 0.5))) as judge:
        scores = await ruler(chats, JUDGE, {"api_base": judge.base_url}, rubric="- Puns win.", tools=tools)
    assert [(s.trajectory_id, s.score) for s in scores] == [("1", 1), ("2", 0), ("3", 0.5)]
    system, user = (message["content"] for message in judge.requests[0]["messages"])
    assert "- Puns win." in system and "1, 2, 3" in system
    material = json.loads(user)
    assert material["shared"] == [GOAL]
    assert {key: [m["content"] for m in run] for key, run in material["runs"].items()} == {
        "1": ["one"],
        "2": ["two"],
        "3": ["two"],
    }
    assert material["tools"] == tools


@pytest.mark.parametrize(
    "content",
    [
        verdict(0.2, 0.8),
        f"Here you are:\n```json\n{verdict(0.2, 0.8)}\n```\nAnything else?",
        json.dumps({"scores": list(reversed(json.loads(verdict(0.2, 0.8))["scores"]))}),
    ],
)
async def test_answers_are_read_whatever_stands_around_them_and_in_any_order(content: str) -> None:
    with chat_endpoint(lambda request: completion(content)) as judge:
        assert [s.score for s in await ruler([[GOAL], [GOAL]], JUDGE, at(judge))] == [0.2, 0.8]


async def test_more_than_nine_trajectories_stay_in_order() -> None:
    expected = [n / 20 for n in range(12)]
    with chat_endpoint(lambda request: completion(verdict(*expected))) as judge:
        assert [s.score for s in await ruler([[GOAL]] * 12, JUDGE, at(judge))] == expected


BAD: list[tuple[str | None, str]] = [
    ("I'd rather not.", "can't be read"),
    (None, "can't be read"),
    ('{"scores": [{"trajectory_id": "1"', "can't be read"),
    ('{"points": []}', "can't be read"),
    (verdict(0.5, 1.5), "less than or equal to 1"),
    (verdict(0.5), r"scored trajectories \['1'\]; it was asked for \['1', '2'\]"),
    (verdict(0.5, 0.5, 0.5), "it was asked for"),
    (verdict(0.5, 0.5, first=0), "it was asked for"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
async def test_a_bad_answer_is_an_error_or_drops_the_group(
    content: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with chat_endpoint(lambda request: completion(content)) as judge:
        with pytest.raises(RunError, match=message):
            await ruler_score_group(group(0, 1), JUDGE, at(judge))
        with caplog.at_level(logging.WARNING, "art.client"):
            assert await ruler_score_group(group(0, 1), JUDGE, at(judge), swallow_exceptions=True) is None
    assert "not scored and is dropped: RunError" in caplog.text


async def test_a_judge_that_got_it_wrong_is_told_and_asked_once_more() -> None:
    answers = iter([verdict(0.5), verdict(0.9, 0.1)])
    with chat_endpoint(lambda request: completion(next(answers))) as judge:
        judged = await ruler_score_group(group(0, 1), JUDGE, at(judge, temperature=0.3))
    assert judged is not None and [t.reward for t in judged] == [0.9, 0.1]
    first, second = judge.requests
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2] == {"role": "assistant", "content": verdict(0.5)}
    assert "scored trajectories ['1']; it was asked for ['1', '2']" in second["messages"][3]["content"]
    assert second["temperature"] == 0.3


async def test_in_a_training_loop_groups_whose_judging_fails_are_filtered_out() -> None:
    """As the reference documents it."""

    def answer(request: Body) -> Body | int:
        return 400 if "bad" in request["messages"][1]["content"] else completion(verdict(0.0, 1.0))

    async def rollout(topic: str, n: int) -> art.Trajectory:
        return art.Trajectory(messages_and_choices=[{"role": "user", "content": topic}, choice([1], [n])])

    with chat_endpoint(answer) as judge:
        groups = await art.gather_trajectory_groups(
            (art.trajectory_group(rollout(topic, n) for n in range(2)) for topic in ("good", "bad", "fine")),
            after_each=lambda each: ruler_score_group(each, JUDGE, at(judge, max_retries=0), swallow_exceptions=True),
        )
    assert [[t.reward for t in each] for each in groups] == [[0.0, 1.0], [0.0, 1.0]]


async def test_additional_histories_are_rejected_also_when_errors_are_swallowed() -> None:
    given = group(0, 1)
    given.trajectories[1].additional_histories.append(art.History())
    with pytest.raises(ValueError, match=r"^Additional histories are not supported by RULER yet\.$"):
        await ruler_score_group(given, JUDGE, swallow_exceptions=True)


async def test_debug_shows_the_judge_s_reasoning(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_endpoint(lambda request: completion(verdict(0.5))) as judge:
        await ruler_score_group(group(0), JUDGE, at(judge))
        assert capsys.readouterr().out == ""
        await ruler_score_group(group(0), JUDGE, at(judge), debug=True)
    assert "because 0.5" in capsys.readouterr().out


async def test_an_empty_group_asks_nobody() -> None:
    judged = await ruler_score_group(art.TrajectoryGroup([ValueError("x")]), JUDGE, {"base_url": "http://127.0.0.1:9"})
    assert judged is not None and len(judged) == 0 and len(judged.exceptions) == 1


async def test_a_judge_without_an_address_or_a_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"judge model 'anthropic/x' has no address; allowed: 'openai/<name>', or"):
        await ruler([[GOAL]], "anthropic/x")
    with pytest.raises(ConfigError, match=r"judge model 'openai/o3': .*OPENAI_API_KEY"):
        await ruler([[GOAL]])


async def test_a_judge_of_any_name_needs_an_address_only() -> None:
    with chat_endpoint(lambda request: completion(verdict(0.5))) as judge:
        await ruler([[GOAL]], "qwen/qwen3-32b", at(judge))
        await ruler([[GOAL]], "hosted_vllm/agent@3", at(judge))
    assert [request["model"] for request in judge.requests] == ["qwen/qwen3-32b", "agent@3"]
