"""The demo's requests: real sentences, real held-out digits, by the SDK and by an unmodified tritonclient."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from examples.demo.models import SIBLINGS, demo_models, minilm_folder
from examples.demo.say import line, table
from examples.digits.data import TASKS, load, rotated
from tessera.sdk import Client, InferResult, Objectives

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone performs music outside with a string instrument.",
    "The stock market fell sharply on Monday.",
    "Shares dropped at the beginning of the week.",
    "My cat sleeps all afternoon.",
)
BATCH = 32
WANTED_ACCURACY = 0.95
_first: dict[str, str] = {}


def first_request_of(model: str) -> str:
    """The id of the first request that this run sent to a model."""
    return _first[model]


def tokens(sentences: tuple[str, ...]) -> dict[str, np.ndarray]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([each.ids for each in encoded], dtype=np.int64),
        "attention_mask": np.array([each.attention_mask for each in encoded], dtype=np.int64),
        "token_type_ids": np.array([each.type_ids for each in encoded], dtype=np.int64),
    }


def _example(client: Client, model: str) -> dict[str, np.ndarray]:
    if model == "minilm":
        return tokens(SENTENCES[:1])
    if model.startswith("digits"):
        return {_input(client, model): load()[1].images[:1]}
    return {_input(client, model): np.random.default_rng(3).standard_normal((1, 3, 224, 224), dtype=np.float32)}


def _input(client: Client, model: str) -> str:
    return client.metadata(model).inputs[0].name


def _timed(client: Client, model: str, inputs: dict[str, np.ndarray]) -> tuple[float, InferResult]:
    begun = time.perf_counter()
    answer = client.infer(model, inputs)
    return (time.perf_counter() - begun) * 1e3, answer


def first_and_second(client: Client) -> None:
    """For each model the first request (which starts an instance) by stage, beside the second, warm one."""
    rows = []
    client.infer("identity", {"INPUT0": np.zeros(1, np.float32)})
    for model in demo_models(minilm_folder()):
        inputs = _example(client, model.name)
        cold_ms, cold = _timed(client, model.name, inputs)
        warm_ms, warm = _timed(client, model.name, inputs)
        _first[model.name] = cold.request_id
        explained = client.explain(cold.request_id)
        stages = ", ".join(f"{stage.stage} {stage.ms:.1f}" for stage in explained.stages)
        rows.append((model.name, cold.variant, cold.start_path, f"{cold_ms:.1f}", stages, warm.start_path, f"{warm_ms:.1f}"))
    line("first request to each model, by stage, against the second:")
    table(("model", "variant", "start path", "first ms", "of it", "then", "second ms"), rows)


def sentences(client: Client) -> None:
    """Cosine similarities that make sense."""
    vectors = client.infer("minilm", tokens(SENTENCES)).outputs["sentence_embedding"]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = vectors @ vectors.T
    line("\ncosine similarity of sentences (minilm):")
    pairs = sorted(itertools.combinations(range(len(SENTENCES)), 2), key=lambda pair: -similar[pair])
    table(("cosine", "", ""), [(f"{similar[pair]:.3f}", SENTENCES[pair[0]], SENTENCES[pair[1]]) for pair in pairs])
    if set(pairs[:2]) != {(0, 1), (2, 3)}:
        raise SystemExit("the paraphrases should be the most similar pairs")


def _accuracy(client: Client, model: str, images: np.ndarray, labels: np.ndarray) -> float:
    name = _input(client, model)
    right = 0
    for start in range(0, len(images), BATCH):
        answer = client.infer(model, {name: images[start : start + BATCH]})
        (logits,) = answer.outputs.values()
        right += int((logits.argmax(axis=1) == labels[start : start + BATCH]).sum())
    return right / len(images)


def digits(client: Client, trained: dict[str, float]) -> None:
    """Accuracy on held-out digits, beside what training measured with eager PyTorch."""
    _, held_out = load()
    rows = []
    for model in ("digits-small", "digits-medium", "digits-large", *SIBLINGS):
        task = model.removeprefix("digits-")
        images = rotated(held_out.images) if task == "rotated" else held_out.images
        labels = TASKS[task](held_out.labels) if task in TASKS else held_out.labels
        served = _accuracy(client, model, images, labels)
        rows.append((model, f"{served:.1%}", f"{trained[model]:.1%}"))
        if model == "digits-medium" and served < WANTED_ACCURACY:
            raise SystemExit(f"digits-medium answers {served:.1%} right, at least {WANTED_ACCURACY:.0%} are wanted")
    line(f"\naccuracy on {len(held_out.labels)} held-out digits:")
    table(("model", "served", "eager, when trained"), rows)


def by_need(client: Client, trained: dict[str, float]) -> list[str]:
    """The same held-out digits to `task:digits` under three objectives, each of which has a network of its own; returns a request of each.

    What is asked for lies half-way between two networks' accuracies, so that the next better one is needed.
    """
    _, held_out = load()
    small, medium, large = (trained[f"digits-{size}"] for size in ("small", "medium", "large"))
    asked = (
        Objectives(latency_ms=500.0),
        Objectives(latency_ms=500.0, min_accuracy=(small + medium) / 2),
        Objectives(min_accuracy=(medium + large) / 2, strict=True),
    )
    # A variant that is active and in time wins before one that would have to be started, and which one plain requests started depends on
    # what this machine's starts were profiled at: the same variant of all three is made active, so that their work decides.
    for size in ("small", "medium", "large"):
        client.infer(f"digits-{size}@1/ort-fp32", {_input(client, f"digits-{size}"): held_out.images[:BATCH]})
    rows, answers = [], []
    for objectives in asked:
        answer = client.infer("task:digits", {_input(client, "task:digits"): held_out.images[:BATCH]}, objectives=objectives)
        (logits,) = answer.outputs.values()
        right = int((logits.argmax(axis=1) == held_out.labels[:BATCH]).sum())
        said = ", ".join(f"{name}={value:g}" for name, value in _numbers(objectives).items())
        network = answer.answered_by.partition("@")[0]
        rows.append(
            (said, answer.answered_by, f"{trained[network]:.1%}", answer.variant, f"{right} of {BATCH}", answer.objective_missed or "-")
        )
        answers.append((network, answer.request_id))
    line("\none task, three objectives:")
    table(("asked for", "answered by", "accuracy", "variant", "right", "missed"), rows)
    networks = [network for network, _ in answers]
    if networks != ["digits-small", "digits-medium", "digits-large"]:
        raise SystemExit(
            f"each objective should have a network of its own, the small, the medium and the large one; these answered: {networks}"
        )
    line(f"three networks answered: {', '.join(networks)}")
    return [request_id for _, request_id in answers]


def _numbers(objectives: Objectives) -> dict[str, float]:
    """The numbers among them that were given."""
    given = {"latency_ms": objectives.latency_ms, "min_accuracy": objectives.min_accuracy, "max_cost": objectives.max_cost}
    return {name: value for name, value in given.items() if value is not None}


def triton(client: Client) -> None:
    """The same through an unmodified tritonclient."""
    import tritonclient.grpc as triton_grpc

    _, held_out = load()
    images = held_out.images[:BATCH]
    other: Any = triton_grpc.InferenceServerClient(client.target.endpoint)
    try:
        name = other.get_model_metadata("digits-medium").inputs[0].name
        given = triton_grpc.InferInput(name, list(images.shape), "FP32")
        given.set_data_from_numpy(images)
        answer = other.infer("digits-medium", [given])
        output = other.get_model_metadata("digits-medium").outputs[0].name
        predicted = answer.as_numpy(output).argmax(axis=1)
        (ours,) = client.infer("digits-medium", {name: images}).outputs.values()
        same = np.array_equal(predicted, ours.argmax(axis=1))
        right = int((predicted == held_out.labels[:BATCH]).sum())
        line(f"\nthrough tritonclient: {right} of {BATCH} held-out digits right; the SDK's answers are {'the same' if same else 'OTHERS'}")
        if not same:
            raise SystemExit("tritonclient and the SDK disagree")
    finally:
        other.close()
