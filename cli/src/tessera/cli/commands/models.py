"""`tessera model register | list | show | delete | variants`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import views
from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.output import Format, OutputOption, exit_codes, mebibytes, note, show
from tessera.domain.errors import InvalidInput

if TYPE_CHECKING:
    from tessera.sdk import types

model = typer.Typer(no_args_is_help=True, help="Register models and look at them.")
variants_of = typer.Typer(no_args_is_help=True, help="What is made of models behind the scenes.")

_VARIANT_COLUMNS = ("variant", "state", "precision", "agreement", "size", "shared", "tensors", "words")


def _builder_arguments(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidInput("--builder-arg", pair, "must be KEY=VALUE (a JSON value; other text is taken as it is)")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _recipes(text: str | None) -> list[str] | None:
    """Names with commas between; "none" is an empty list."""
    if text is None:
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",")]


def model_or_version(field: str, text: str, words: str) -> tuple[str, int | None]:
    """Reads MODEL or MODEL@VERSION. Raises: InvalidInput: it is neither; `words` say why a variant is not meant."""
    from tessera.domain.ids import parse_reference

    reference = parse_reference(text)
    if reference.variant is not None:
        raise InvalidInput(field, text, f"names a variant; {words}")
    return reference.name, reference.version


class _Progress:
    """Progress on stderr: one line that is rewritten on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def line(self, text: str) -> None:
        if self._on:
            sys.stderr.write(f"\r\033[K{text[:120]}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._on:
            sys.stderr.write("\r\033[K")

    def event(self, event: types.JobEvent) -> None:
        self.line(f"{event.fraction:4.0%} {event.step} {event.message}")

    def upload(self, sent: int, total: int) -> None:
        self.line(f"uploading {mebibytes(sent)} of {mebibytes(total)}")


@model.command("register")
def register_model(
    name: Annotated[str, typer.Argument(help="the model's name")],
    path_or_builder: Annotated[str, typer.Argument(help="a Hugging Face directory, a .pt2 or .onnx file, or package.module:callable")],
    task: Annotated[str, typer.Option("--task", help="what it answers, in common with other models")] = "",
    dataset: Annotated[str, typer.Option("--dataset", help="what its accuracy was measured on")] = "",
    accuracy: Annotated[float | None, typer.Option("--accuracy", help="0 to 1, as you measured it")] = None,
    builder_arg: Annotated[list[str] | None, typer.Option("--builder-arg", help="KEY=VALUE for the builder; may be repeated")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="seeded weights for a builder")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="a safetensors file with the builder's weights")] = None,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="a .npz with inputs and the right answers, see --metric")] = None,
    metric: Annotated[str, typer.Option("--metric", help="how answers are scored: top1, f1, spearman, cosine, mse, ...")] = "",
    allow_loss: Annotated[
        float | None, typer.Option("--allow-loss", help="what a lossy variant may lose and still be offered, 0 to 1 (0.01)")
    ] = None,
    lossy: Annotated[
        bool | None, typer.Option("--lossy/--no-lossy", help="plain requests may get a lossy variant (such as int8) that is offered")
    ] = None,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="a .npz with inputs; int8 takes its ranges from them")] = None,
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="recipes beside the base ones, with commas between, or none"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="return when its base variants are made, not only when it is durable")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """Register a model; the same content again is recognised and changes nothing."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        progress = _Progress()
        try:
            result = client.register(
                name,
                path_or_builder,
                task=task,
                dataset=dataset,
                accuracy=accuracy,
                builder_args=_builder_arguments(builder_arg or []),
                seed=seed,
                weights=weights,
                evaluation=evaluation,
                metric=metric,
                allow_loss=allow_loss,
                lossy=lossy,
                calibration=calibration,
                variants=_recipes(variants),
                wait=wait,
                on_event=progress.event,
                on_upload=progress.upload,
            )
        finally:
            progress.end()
        if output is Format.TABLE:
            _say_registered(result)
        show(
            views.registration(result),
            output,
            rows=[_variant_row(variant) for variant in result.variants],
            columns=_VARIANT_COLUMNS,
            name=lambda item: f"{item['model']}@{item['version']}",
        )


def _say_registered(result: types.RegistrationResult) -> None:
    if result.unchanged:
        note(f"{result.model}@{result.version} was registered before with the same content; nothing changed")
        return
    note(
        f"registered {result.model}@{result.version}: {mebibytes(result.tensor_bytes)} of tensors, "
        f"{mebibytes(result.tensor_bytes_already_stored)} of them already stored"
    )


def _variant_row(variant: types.VariantInfo) -> dict[str, Any]:
    return {
        "variant": variant.key.variant,
        "state": variant.state,
        "size": mebibytes(variant.tensor_bytes),
        "shared": mebibytes(variant.tensor_bytes_shared),
        "tensors": variant.tensor_count,
        "precision": variant.precision,
        "agreement": _agreement(variant),
        "words": variant.reason or variant.progress or (f"withheld: {variant.withheld}" if variant.withheld else variant.notes),
    }


def _agreement(variant: types.VariantInfo) -> str:
    """The score where there is one, else how its answers compare with the registered model's."""
    if not variant.HasField("agreement"):
        return ""
    agreement = variant.agreement
    if agreement.HasField("score"):
        return f"{agreement.metric} {agreement.score:.4f} of {agreement.reference_score:.4f}"
    return f"cosine {agreement.cosine:.5f}" if variant.lossy else f"within {agreement.max_error:.1g}"


def _named(alias: types.AliasInfo) -> str:
    return f"{alias.alias} (@{alias.version})" if alias.version else f"{alias.alias} (follows)"


@model.command("list")
def list_models(
    task: Annotated[str, typer.Option("--task", help="only models of this task")] = "",
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """All models."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = client.models(task)
        rows = [
            {
                "name": info.name,
                "task": info.task,
                "version": info.versions[-1].version if info.versions else None,
                "variants": [f"{each.key.variant} ({each.state})" for each in info.versions[-1].variants] if info.versions else [],
                "aliases": [_named(alias) for alias in info.aliases],
            }
            for info in found
        ]
        show([views.model(info) for info in found], output, rows=rows, columns=("name", "version", "task", "variants", "aliases"))


@model.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="a model or an alias")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """A model with its versions, signature and variants."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        info = client.model(name)
        if output is Format.TABLE:
            print(f"{info.name}  task: {info.task or '-'}  dataset: {info.dataset or '-'}")
            for alias in info.aliases:
                before = ", ".join(f"{step.model}@{step.version} ({step.reason})" for step in reversed(alias.before))
                print(f"  alias {_named(alias)}: {alias.reason}{f'; before: {before}' if before else ''}")
            for version in info.versions:
                for what, specs in (("in ", version.signature.inputs), ("out", version.signature.outputs)):
                    print(f"  @{version.version} {what} " + ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs))
        rows = [{"version": version.version, **_variant_row(variant)} for version in info.versions for variant in version.variants]
        show(views.model(info), output, rows=rows, columns=("version", *_VARIANT_COLUMNS))


@model.command("delete")
def delete_model(
    name: Annotated[str, typer.Argument(help="the model, or MODEL@VERSION for one version")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Delete a model or one version of it; refused while an alias points at it."""
    with exit_codes():
        model_name, version = model_or_version("model", name, "a model or a version of it is deleted, with all its variants")
        if not yes:
            typer.confirm(f"delete {name}?", abort=True)
        with connect(endpoint, state, trust_domain) as client:
            freed = client.delete_model(model_name, version)
        note(f"deleted {name}; the repository got {mebibytes(freed)} back")


@variants_of.command("cancel")
def cancel_variants(
    name: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@VERSION/VARIANT")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Stop making variants that are not made yet; the base ones are made nevertheless."""
    from tessera.domain.ids import parse_reference

    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        reference = parse_reference(name)
        stopped = client.stop_variants(reference.name, reference.version, reference.variant or "")
        note(f"stopped {', '.join(views.key_text(key) for key in stopped)}" if stopped else "nothing was being made")


def register(app: typer.Typer) -> None:
    model.add_typer(variants_of, name="variants")
    app.add_typer(model, name="model")
