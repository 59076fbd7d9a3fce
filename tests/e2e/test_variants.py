"""What is made of a model behind the user's back, on a platform that makes it: measured, shown, served by name, never by surprise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import e2e_models
import numpy as np
import pytest
from e2e_platform import Platform, until

from tessera.plugins import plugins
from tessera.registry.core.recipes import GROUP
from tessera.sdk import types

pytestmark = pytest.mark.slow

MADE_S = 120.0


@pytest.fixture(scope="module")
def making(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that makes int8 of convolutions."""
    found = Platform(tmp_path_factory.mktemp("making") / "state", env={"TESSERA_RECIPES": '["ort-int8"]'})
    found.up()
    try:
        yield found
        found.check_stores()
        done = found.down()
        assert (done.returncode, found.leftovers()) == (0, []), done.stderr
    finally:
        found.end()


def variants(platform: Platform, model: str) -> dict[str, types.VariantInfo]:
    with platform.client() as client:
        return {info.key.variant: info for info in client.model(model).versions[-1].variants}


def test_int8_is_measured_on_the_users_set_and_served_by_name_alone(
    making: Platform, sources: Path, net: e2e_models.Net, tmp_path: Path
) -> None:
    images = e2e_models.images(64)
    np.savez(tmp_path / "eval.npz", image=images, labels=net.eager(images).argmax(axis=1))
    words = ("--eval", str(tmp_path / "eval.npz"), "--metric", "top1", "--allow-loss", "0.5", "--wait")
    done = making.tessera("model", "register", "net", str(sources / "net.pt2"), *words)
    assert done.returncode == 0, done.stderr
    until(lambda: all(info.state == "ready" for info in variants(making, "net").values()), "int8 is made", MADE_S)
    found = variants(making, "net")
    assert set(found) == {"aten-fp32", "ort-fp32", "ort-int8"}
    int8 = found["ort-int8"]
    assert (int8.lossy, int8.withheld, int8.agreement.samples, int8.agreement.reference_score) == (True, "", 64, 1.0)
    shown = making.tessera("model", "show", "net").stdout
    assert f"top1 {int8.agreement.score:.4f} of 1.0000" in shown
    with making.client() as client:
        plain = client.infer("net", {"image": images[:4]})
        assert plain.variant != "ort-int8"
        named = client.infer("net@1/ort-int8", {"image": images[:4]})
        assert named.variant == "ort-int8"
    (name,) = plain.outputs
    assert e2e_models.agrees(plain.outputs[name], net.eager(images[:4]))
    wanted = net.eager(images[:4])
    difference = float(np.abs(named.outputs[name] - wanted).max())
    assert 0 < difference < 0.2 * float(np.abs(wanted).max())


@pytest.mark.parametrize("recipe", plugins(GROUP))
def test_a_recipe_of_another_package_is_made_for_who_asks(making: Platform, sources: Path, net: e2e_models.Net, recipe: str) -> None:
    done = making.tessera("model", "register", f"by-{recipe}", str(sources / "net.pt2"), "--variants", recipe, "--wait")
    assert done.returncode == 0, done.stderr
    until(lambda: all(info.state == "ready" for info in variants(making, f"by-{recipe}").values()), f"{recipe} is made", MADE_S)
    assert set(variants(making, f"by-{recipe}")) == {"aten-fp32", "ort-fp32", recipe}
    images = e2e_models.images(4)
    with making.client() as client:
        named = client.infer(f"by-{recipe}@1/{recipe}", {"image": images})
    (name,) = named.outputs
    assert named.variant == recipe
    assert e2e_models.agrees(named.outputs[name], net.eager(images))


def test_a_calibration_set_of_one_sample_is_refused_by_name(making: Platform, sources: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", image=e2e_models.images(1))
    done = making.tessera("model", "register", "refused", str(sources / "net.pt2"), "--calibration", str(tmp_path / "one.npz"))
    assert done.returncode == 2
    assert "calibration set samples 1: at least 8" in done.stderr


def test_what_is_not_made_yet_can_be_cancelled(making: Platform, sources: Path) -> None:
    with making.client() as client:
        client.register("sibling", sources / "sibling.pt2")
    done = making.tessera("model", "variants", "cancel", "sibling")
    assert done.returncode == 0, done.stderr
    until(lambda: all(info.state in ("ready", "failed") for info in variants(making, "sibling").values()), "nothing is open", MADE_S)
    found = variants(making, "sibling")
    assert found["ort-fp32"].state == "ready"
    if "stopped" in done.stderr:
        assert found["ort-int8"].state == "failed"
        assert "stopped before it was made" in found["ort-int8"].reason
