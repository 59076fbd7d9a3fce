"""Batch jobs by real processes: killed in the middle, handed over, paused, cancelled; on a disk and in an object store."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import fsspec
import numpy as np
import pytest
from batch_bench import DOMAIN, Bench

from tessera.coord import keys
from tessera.domain.errors import AlreadyExists, InvalidInput, NotFound, PermissionDenied
from tessera.domain.ids import InstanceId, NodeId
from tessera.domain.records import LoadRecord, LoadState
from tessera.testing.builders import a_variant_key

pytestmark = pytest.mark.slow


def tens(rows: int) -> list[float]:
    return [10.0 * row for row in range(rows)]


async def test_a_job_runs_through_the_gateway_and_is_followed_to_its_end(bench: Bench) -> None:
    bench.runtime.bad = {5.0}
    submitted = await bench.client.submit_batch("digits", bench.save(50), str(bench.jobs / "out.npz"), latency_ms=1000.0)
    seen = [found async for found in bench.client.watch_batch(submitted.job_id)]
    assert (submitted.state, seen[-1].state, seen[-1].rows, seen[-1].rows_done, seen[-1].rows_failed) == ("queued", "done", 50, 50, 1)
    found = bench.logits("out.npz")
    assert np.isnan(found[5])
    assert found[:5] + found[6:] == tens(50)[:5] + tens(50)[6:]
    assert bench.runtime.most_at_once == 1
    assert [job.job_id for job in await bench.client.batches()] == [submitted.job_id]
    with pytest.raises(AlreadyExists, match="say resume or overwrite"):
        await bench.client.submit_batch("digits", bench.save(50), str(bench.jobs / "out.npz"))
    with pytest.raises(PermissionDenied):
        await bench.client.submit_batch("digits", "/etc/passwd", str(bench.jobs / "p.jsonl"), input_format="jsonl")
    with pytest.raises(InvalidInput, match=r"parameter min_accuracy 7\.0"):
        await bench.client.submit_batch("digits", bench.save(50), str(bench.jobs / "p.npz"), min_accuracy=7.0)
    with pytest.raises(NotFound):
        await bench.client.batch("b0")


@pytest.mark.parametrize("kind", ["npz", "jsonl", "parquet"])
async def test_a_profiler_killed_in_the_middle_loses_no_row_and_doubles_none(bench: Bench, kind: str) -> None:
    """Several kills; each row is in the output once, and no more than a part is asked again for each kill."""
    rows = 160
    bench.runtime.delay_s = 0.02
    job = await bench.client.submit_batch("digits", bench.save(rows), str(bench.jobs / f"out.{kind}"), batch_size=2)
    for parts in (2, 7):
        await bench.written(job.job_id, parts)
        await asyncio.sleep(0.03)
        assert bench.end("profiler", signal.SIGKILL) == -signal.SIGKILL
        bench.profiler("profiler")
    found = await bench.state(job.job_id, "done", "failed")
    assert (found.state, found.rows_done, found.rows_failed, found.parts) == ("done", rows, 0, rows // 8)
    assert values_of(bench, f"out.{kind}") == tens(rows)
    assert set(bench.runtime.rows) == {float(row) for row in range(rows)}
    assert len(bench.runtime.rows) <= rows + 2 * 8, "only what no complete part held was asked again"
    assert sorted(path.name for path in bench.jobs.iterdir()) == ["in.npz", f"out.{kind}", f"out.{kind}.manifest.json"]
    manifest = json.loads((bench.jobs / f"out.{kind}.manifest.json").read_text())
    assert (manifest["done"], manifest["rows"], len(manifest["parts"])) == (True, rows, rows // 8)


def values_of(bench: Bench, name: str) -> list[float]:
    if name.endswith(".npz"):
        return bench.logits(name)
    if name.endswith(".jsonl"):
        return [json.loads(line)["logits"][0] for line in (bench.jobs / name).read_text().splitlines()]
    import pyarrow.parquet as pq

    return [row[0] for row in pq.read_table(bench.jobs / name).column("logits").to_pylist()]


async def test_a_profiler_that_is_stopped_hands_over_to_another(bench: Bench) -> None:
    bench.runtime.delay_s = 0.02
    bench.profiler("second")
    job = await bench.client.submit_batch("digits", bench.save(120), str(bench.jobs / "out"), batch_size=2)
    await bench.written(job.job_id, 2)
    assert bench.runtime.most_at_once == 1, "two profilers work in turn only"
    workers = [name for name in ("profiler", "second") if "batch job under way" in (bench.folder / f"{name}.log").read_text()]
    assert len(workers) == 1
    assert bench.end(workers[0], signal.SIGTERM) == 0
    assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    assert bench.runtime.most_at_once == 1
    parts = sorted((bench.jobs / "out").glob("part-*.npz"))
    assert [value for part in parts for value in bench.logits(f"out/{part.name}")] == tens(120)


async def test_a_load_record_pauses_a_job_until_it_is_gone_for_a_while(bench: Bench) -> None:
    bench.runtime.delay_s = 0.02
    job = await bench.client.submit_batch("digits", bench.save(200), str(bench.jobs / "out.npz"), batch_size=2)
    await bench.written(job.job_id, 1)
    load = LoadRecord(InstanceId("i9"), NodeId("node-0"), a_variant_key(), LoadState.INTERFERED, 0.0, "3.1 times slower than profiled")
    key = keys.load(DOMAIN, load.node_id, load.instance_id)
    await bench.put(key, load)
    paused = await bench.state(job.job_id, "paused")
    assert paused.reason == "instance i9 of digits@1/aten-fp32 on node-0 is interfered: 3.1 times slower than profiled"
    await asyncio.sleep(0.1)
    asked = len(bench.runtime.rows)
    await asyncio.sleep(1.0)
    assert len(bench.runtime.rows) == asked, "no request goes out while it is paused"
    await bench.remove(key)
    assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    assert bench.logits("out.npz") == tens(200)
    assert len(bench.runtime.rows) == 200


async def test_a_cancelled_job_stops_asking_and_another_goes_on_where_it_was(bench: Bench) -> None:
    bench.runtime.delay_s = 0.05
    source, target = bench.save(160), str(bench.jobs / "out.jsonl")
    job = await bench.client.submit_batch("digits", source, target, batch_size=2)
    await bench.written(job.job_id, 2)
    await bench.client.cancel_batch(job.job_id)
    cancelled = await bench.state(job.job_id, "cancelled")
    assert cancelled.reason == "cancelled; what is written stays"
    asked = len(bench.runtime.rows)
    await asyncio.sleep(0.3)
    assert len(bench.runtime.rows) <= asked + 2
    bench.runtime.delay_s = 0.0
    again = await bench.client.submit_batch("digits", source, target, batch_size=8, if_exists="resume")
    assert (await bench.state(again.job_id, "done", "failed")).state == "done"
    assert values_of(bench, "out.jsonl") == tens(160)


async def test_a_gateway_that_is_away_is_waited_for(bench: Bench) -> None:
    bench.runtime.delay_s = 0.02
    job = await bench.client.submit_batch("digits", bench.save(120), str(bench.jobs / "out.npz"), batch_size=2)
    await bench.written(job.job_id, 1)
    bench.end("gateway", signal.SIGKILL)
    await asyncio.sleep(1.0)
    token = str(bench.folder / "token")
    bench.launch("gateway", "gateway", address=bench.public, admin_address=bench.admin, metrics_address="", token_file=token)
    assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    assert bench.logits("out.npz") == tens(120)


async def test_an_etcd_that_is_away_for_a_while_costs_delay_only(bench: Bench) -> None:
    bench.runtime.delay_s = 0.02
    job = await bench.client.submit_batch("digits", bench.save(200), str(bench.jobs / "out.npz"), batch_size=2)
    await bench.written(job.job_id, 2)
    await bench.etcd.stop()
    await asyncio.sleep(4.0)  # longer than the lease
    await bench.etcd.start()
    assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    assert bench.logits("out.npz") == tens(200)


async def test_jobs_from_and_to_an_object_store(s3_bench: Bench, s3_endpoint: str) -> None:
    """npz in, each format out, a kill in the middle; a bucket's other folders are out of reach."""
    bench, files = s3_bench, fsspec.filesystem("s3", endpoint_url=s3_endpoint, use_listings_cache=False)
    bench.save(60)
    files.put_file(str(bench.jobs / "in.npz"), "models/jobs/default/in.npz")
    bench.runtime.delay_s = 0.02
    folder = "s3://models/jobs/default"
    job = await bench.client.submit_batch("digits", f"{folder}/in.npz", f"{folder}/deep/out.npz", batch_size=2)
    await bench.written(job.job_id, 2)
    bench.end("profiler", signal.SIGKILL)
    bench.profiler("profiler")
    assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    with files.open("models/jobs/default/deep/out.npz") as file, np.load(file) as found:
        assert found["logits"][:, 0].tolist() == tens(60)
    assert sorted(files.find("models/jobs/default/deep")) == [
        f"models/jobs/default/deep/out.npz{ending}" for ending in ("", ".manifest.json")
    ]
    bench.runtime.delay_s = 0.0
    for kind in ("jsonl", "parquet"):
        job = await bench.client.submit_batch("digits", f"{folder}/in.npz", f"{folder}/out.{kind}")
        assert (await bench.state(job.job_id, "done", "failed")).state == "done"
    lines = files.cat_file("models/jobs/default/out.jsonl").splitlines()
    assert [json.loads(line)["logits"][0] for line in lines] == tens(60)
    assert parquet_values(files) == tens(60)
    for url in ("s3://models/jobs/other/in.npz", "s3://models/jobs/default2/in.npz", "s3://elsewhere/in.npz"):
        with pytest.raises(PermissionDenied, match="s3://models/jobs/default"):
            await bench.client.submit_batch("digits", url, f"{folder}/x.npz")
    with pytest.raises(NotFound, match="there is no such file"):
        await bench.client.submit_batch("digits", f"{folder}/absent.npz", f"{folder}/x.npz")
    with pytest.raises(AlreadyExists):
        await bench.client.submit_batch("digits", f"{folder}/in.npz", f"{folder}/out.jsonl")


def parquet_values(files: Any) -> list[float]:
    import pyarrow.parquet as pq

    with files.open("models/jobs/default/out.parquet") as file:
        return [row[0] for row in pq.read_table(file).column("logits").to_pylist()]
