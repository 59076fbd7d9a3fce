"""What may be submitted, what is done with an output that is there, and who may work: real files, a fake etcd, virtual time."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import numpy as np
import pytest
from batch_world import World, logits, tens

from tessera.coord import keys
from tessera.domain.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidInput,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TesseraError,
    VersionNotFound,
)
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, BuildClass, ModelName, NodeId
from tessera.domain.records import BatchState, VariantState
from tessera.profiler.batch.loops.desk import Submission
from tessera.profiler.batch.ports import Described
from tessera.testing.builders import a_node, a_signature, a_variant_key, a_version_key, an_alias


async def test_an_output_that_exists_is_refused_resumed_or_overwritten(world: World) -> None:
    world.save(6)
    desk = world.desk()
    async with world.running():
        await desk.submit(world.wanted())
        await world.done()
        with pytest.raises(AlreadyExists, match="exists already; say resume or overwrite"):
            await desk.submit(world.wanted())
        world.model.asked.clear()
        job = await desk.submit(world.wanted(if_exists="resume"))
        assert (await world.done(job.job_id)).rows_done == 6
        assert world.model.asked == [], "it was complete"
        job = await desk.submit(world.wanted(if_exists="overwrite"))
        await world.done(job.job_id)
        assert len(world.model.asked) == 3
        world.save(7)
        job = await desk.submit(world.wanted(if_exists="resume"))
        job = await world.ended(job.job_id)
    assert job.state is BatchState.FAILED
    assert "cannot be gone on with: its input's version was" in job.reason


@pytest.mark.parametrize(("output", "written"), [("out.npz", "out.npz"), ("out", "out/part-00001.npz")])
@pytest.mark.parametrize("gone", [True, False])
async def test_a_done_output_that_is_not_there_any_more_is_not_resumed(world: World, output: str, written: str, gone: bool) -> None:
    world.save(6)
    desk, path = world.desk(), world.root / written
    async with world.running():
        await desk.submit(world.wanted(output))
        await world.done()
        if gone:
            path.rename(world.root / "moved.npz")
        else:
            path.write_bytes(path.read_bytes()[:-1])
        job = await world.ended((await desk.submit(world.wanted(output, if_exists="resume"))).job_id)
        assert job.state is BatchState.FAILED
        now = r"is gone" if gone else r"has \d+ bytes, \d+ were written"
        assert re.fullmatch(rf"failed_precondition: file://{path} {now}: overwrite begins anew", job.reason)
        await world.done((await desk.submit(world.wanted(output, if_exists="overwrite"))).job_id)
    assert path.exists()


async def test_a_file_that_no_job_wrote_is_not_resumed_and_nothing_else_is_removed(world: World) -> None:
    world.save(6)
    (world.root / "out").mkdir()
    (world.root / "out" / "notes.txt").write_text("mine")
    for if_exists, words in (("", "say resume or overwrite|was not written"), ("resume", "was not written by a batch job")):
        with pytest.raises(AlreadyExists, match=words):
            await world.desk().submit(world.wanted("out", if_exists=if_exists))
    async with world.running():
        job = await world.desk().submit(world.wanted("out", if_exists="overwrite"))
        await world.done(job.job_id)
    assert (world.root / "out" / "notes.txt").read_text() == "mine"


async def test_an_overwriting_that_was_cancelled_is_resumed_and_not_what_it_would_have_replaced(world: World) -> None:
    world.save(6)
    desk = world.desk()
    async with world.running():
        await world.done((await desk.submit(world.wanted())).job_id)
        world.save(8)
        world.model.hold = asyncio.Event()
        world.model.asked.clear()
        cancelled = await desk.submit(world.wanted(if_exists="overwrite"))
        await world.until(lambda job: bool(world.model.asked), cancelled.job_id, step_s=0.1)
        await desk.cancel(DEFAULT_TRUST_DOMAIN, cancelled.job_id)
        await world.ended(cancelled.job_id)
        assert logits(world) == tens(6), "the old one stays until the new one is there"
        world.model.hold = None
        await world.done((await desk.submit(world.wanted(if_exists="resume"))).job_id)
    assert logits(world) == tens(8)


async def test_a_part_that_somebody_else_wrote_is_not_joined(world: World) -> None:
    world.save(8)
    world.model.hold, world.model.hold_after = asyncio.Event(), 2  # the second part's first request
    async with world.running():
        await world.desk().submit(world.wanted())
        await world.until(lambda job: len(world.model.asked) > 2, step_s=0.1)
        part = world.root / "out.npz.parts" / "part-00000.npz"
        part.write_bytes(part.read_bytes()[:-1] + b"x")
        world.model.hold.set()
        job = await world.ended()
    assert job.state is BatchState.FAILED
    assert "part-00000.npz is not what its note says" in job.reason


async def test_two_jobs_do_not_write_to_one_place(world: World) -> None:
    world.save(4)
    await world.desk().submit(world.wanted())
    with pytest.raises(AlreadyExists, match=r"batch job b1 \(queued\) writes there"):
        await world.desk().submit(world.wanted())


async def test_an_input_that_changes_meanwhile_fails_the_job(world: World) -> None:
    world.save(8)
    world.model.hold = asyncio.Event()
    async with world.running():
        await world.desk().submit(world.wanted())
        await world.until(lambda job: bool(world.model.asked), step_s=0.1)
        with (world.root / "in.npz").open("ab") as file:
            file.write(b"more")
        world.model.hold.set()
        job = await world.ended()
    assert job.state is BatchState.FAILED
    assert "was changed while the job read it" in job.reason


# Bad submissions


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "nobody"}, ModelNotFound, "'nobody' is not registered"),
        ({"model": ""}, InvalidInput, "model ''"),
        ({"model": "digits@7"}, NotFound, "no version 7"),
        ({"model": "digits@1/ort-int8"}, NotFound, "ort-int8"),
        ({"model": "task:dogs"}, InvalidInput, "no model of this task"),
        ({"source": "absent.npz"}, NotFound, "there is no such file"),
        ({"source": "text.npz"}, TesseraError, "is no npz file"),
        ({"source": "in.csv"}, InvalidInput, "input_url"),
        ({"source": "lacking.npz"}, InvalidInput, "input arrays 'image': missing; the file has picture"),
        ({"source": "doubles.npz"}, InvalidInput, "array image dtype 'float64'"),
        ({"source": "wide.npz"}, InvalidInput, "array image shape"),
        ({"source": "empty.npz"}, InvalidInput, "have no rows"),
        ({"source": "pickled.npz"}, InvalidInput, "dtype 'object'"),
        ({"batch_size": 9}, InvalidInput, "batch_size 9: must be 1 to 8"),
        ({"max_errors": 10_001}, InvalidInput, "max_errors 10001: must be 0 to 10000"),
        ({"if_exists": "append"}, InvalidInput, "if_exists 'append'"),
        ({"output": "in.npz"}, InvalidInput, "another place than input_url"),
        ({"output": "out.xyz", "output_format": "xyz"}, InvalidInput, "output_format 'xyz'"),
    ],
)
async def test_what_is_wrong_is_named_when_it_is_submitted(
    world: World, fields: dict[str, Any], error: type[TesseraError], words: str
) -> None:
    world.save(4)
    (world.root / "text.npz").write_text("no zip")
    np.savez(world.root / "lacking.npz", picture=np.zeros(3))
    np.savez(world.root / "doubles.npz", image=np.zeros((3, 1, 8, 8)))
    np.savez(world.root / "wide.npz", image=np.zeros((3, 1, 8, 9), np.float32))
    np.savez(world.root / "empty.npz", image=np.zeros((0, 1, 8, 8), np.float32))
    np.savez(world.root / "pickled.npz", image=np.array([{}], dtype=object))
    wanted = world.wanted(**fields) if "model" not in fields else None
    if wanted is None:
        wanted = Submission(DEFAULT_TRUST_DOMAIN, fields["model"], str(world.root / "in.npz"), str(world.root / "out.npz"))
    with pytest.raises(error, match=words):
        await world.desk().submit(wanted)
    assert await world.desk().all_of(DEFAULT_TRUST_DOMAIN) == []


@pytest.mark.parametrize("model", ["digits", "live", "task:digits"])
async def test_a_job_asks_the_version_that_answers_for_the_name(world: World, model: str) -> None:
    """A new version is the latest from its registration on, and answers when it is built."""
    world.save(4)
    await world.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("live")), an_alias("live", version=None))
    for state, number, most in ((VariantState.BUILDING, 1, 8), (VariantState.FAILED, 1, 8), (VariantState.READY, 2, 32)):
        await world.put_version(2, state=state, max_batch=32)
        resolved = "" if model == "task:digits" else f"digits@{number}"
        assert await world.models.describe(DEFAULT_TRUST_DOMAIN, model) == Described(resolved, a_signature(), most)
    await world.put(keys.node(DEFAULT_TRUST_DOMAIN, NodeId("node-0")), a_node())
    await world.put_version(2, max_batch=32, build_class=BuildClass("another"))
    assert (await world.models.describe(DEFAULT_TRUST_DOMAIN, model)).max_batch == 8, "who is there can run the older one alone"
    await world.put_version(2, state=VariantState.BUILDING)
    await world.desk().submit(world.wanted(model=model))
    with pytest.raises(FailedPrecondition, match="digits@2/aten-fp32 is building"):
        await world.models.describe(DEFAULT_TRUST_DOMAIN, "digits@2")


@pytest.mark.parametrize(
    ("model", "resolved"),
    [
        ("digits", "digits@2"),
        ("digits@1", "digits@1"),
        ("digits@1/aten-fp32", "digits@1/aten-fp32"),
        ("live", "digits@2"),
        ("live@1/aten-fp32", "digits@1/aten-fp32"),
        ("fixed", "digits@1"),
        ("fixed@1", "digits@1"),
        ("task:digits", ""),
    ],
)
async def test_what_a_job_asks_names_a_version(world: World, model: str, resolved: str) -> None:
    await world.put_version(2)
    await world.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("live")), an_alias("live", version=None))
    await world.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("fixed")), an_alias("fixed", version=1))
    world.save(4)
    job = await world.desk().submit(world.wanted(model=model))
    assert (job.model, job.resolved, job.asked) == (model, resolved, resolved or model)
    async with world.running():
        await world.done()
    assert world.model.named == {resolved or model}
    assert json.loads((world.root / "out.npz.manifest.json").read_text())["model"] == (resolved or model)


async def test_an_alias_of_one_version_has_no_other(world: World) -> None:
    await world.put_version(2)
    await world.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("fixed")), an_alias("fixed", version=1))
    with pytest.raises(VersionNotFound, match="'fixed' has no version 2; it has only 1: it is an alias of digits@1"):
        await world.models.describe(DEFAULT_TRUST_DOMAIN, "fixed@2")


async def test_one_version_answers_a_job_though_its_name_stands_for_another_meanwhile(world: World) -> None:
    """While it waits, while it runs, and when another profiler takes it up; who goes on by name later is told."""
    world.save(12)
    await world.desk().submit(world.wanted(max_errors=0))
    await world.put_version(2)
    world.model.hold, world.model.hold_after = asyncio.Event(), 2  # the second part's first request
    async with world.running():
        await world.until(lambda job: len(world.model.asked) > 2, step_s=0.1)
    await world.put_version(3)
    world.model.hold, world.model.bad = None, {11.0}
    async with world.running():
        assert (await world.ended()).state is BatchState.FAILED
        world.model.bad = set()
        asked = len(world.model.asked)
        by_name = await world.desk().submit(world.wanted(if_exists="resume"))
        refused = await world.ended(by_name.job_id)
        assert refused.state is BatchState.FAILED
        assert refused.reason.endswith(
            "its model was digits@1, now it is digits@3; name digits@1 to go on there, or begin anew with overwrite"
        )
        assert len(world.model.asked) == asked
        by_version = await world.desk().submit(world.wanted(model="digits@1", if_exists="resume"))
        await world.done(by_version.job_id)
    assert world.model.named == {"digits@1"}
    assert logits(world) == tens(12)


async def test_a_version_that_is_deleted_meanwhile_fails_the_job_that_asks_it(world: World) -> None:
    world.save(4)
    await world.desk().submit(world.wanted())
    await world.put_version(2)
    await world.remove(keys.version(a_version_key()))
    await world.remove(keys.variant(a_variant_key()))
    async with world.running():
        job = await world.ended()
    assert (job.state, job.reason) == (BatchState.FAILED, "not_found: model 'digits' has no version 1")
    assert world.model.asked == []


async def test_nothing_outside_the_roots_is_read_or_written(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    world.save(4)
    outside = tmp_path_factory.mktemp("outside")
    np.savez(outside / "in.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    (world.root / "link.npz").symlink_to(outside / "in.npz")
    (world.root / "folder").symlink_to(outside)
    desk = world.desk()
    with pytest.raises(PermissionDenied, match="must lie below one of the profiler's batch roots"):
        await desk.submit(Submission(DEFAULT_TRUST_DOMAIN, "digits", str(outside / "in.npz"), str(world.root / "out.npz")))
    with pytest.raises(PermissionDenied, match="must lie below one of the profiler's batch roots"):
        await desk.submit(Submission(DEFAULT_TRUST_DOMAIN, "digits", "/etc/absent.npz", str(world.root / "out.npz")))
    with pytest.raises(PermissionDenied, match=r"input_url.*by a link"):
        await desk.submit(world.wanted(source="link.npz"))
    with pytest.raises(PermissionDenied, match=r"output_url.*by a link"):
        await desk.submit(world.wanted("folder/out.npz"))
    assert sorted(path.name for path in outside.iterdir()) == ["in.npz"]


async def test_a_queue_has_an_end(world: World) -> None:
    world.save(4)
    await world.desk().submit(world.wanted())
    with pytest.raises(ResourceExhausted, match="1 batch jobs of 'default' are unfinished"):
        await world.desk(queue_limit=1).submit(world.wanted("other.npz"))


def test_a_domain_that_is_not_served_is_named(world: World) -> None:
    with pytest.raises(InvalidInput, match="trust_domain 'lab': this profiler takes batch jobs of default"):
        world.desk().domain("lab")


async def test_a_task_is_a_model_too(world: World) -> None:
    world.save(4)
    async with world.running():
        submission = Submission(DEFAULT_TRUST_DOMAIN, "task:digits", str(world.root / "in.npz"), str(world.root / "out.npz"))
        job = await world.desk().submit(submission)
        assert job.batch_size == 8, "what every variant takes, eight at most"
        await world.done()
    assert logits(world) == tens(4)


async def test_nothing_is_done_by_who_is_not_elected(world: World) -> None:
    with pytest.raises(TesseraError, match="does not work on batch jobs now"):
        world.elected.guard()


async def test_a_lost_session_ends_the_work_and_it_goes_on_after(world: World) -> None:
    world.save(8)
    world.model.hold = asyncio.Event()
    async with world.running():
        await world.desk().submit(world.wanted())
        await world.until(lambda job: bool(world.model.asked), step_s=0.1)
        listing = await world.etcd.list(keys.BATCH_ELECTION)
        world.etcd.server.revoke(listing.items[0].lease_id)
        async with asyncio.timeout(5):
            while world.elected.leadership is not None:
                await asyncio.sleep(0.002)
                await world.clock.advance(0.1)
        world.model.hold = None
        await world.done()
    assert logits(world) == tens(8)
