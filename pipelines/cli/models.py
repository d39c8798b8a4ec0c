"""`stride train`, `export`, `promote`, `rollback`, `history` and `ship`: from a recipe to the champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import Force, Json, Overrides, RecipeName, answer, answer_json, say, table, working

if TYPE_CHECKING:
    from contracts.recipe import Recipe
    from pipelines.promotion import Promotion
    from pipelines.ship import ShipResult

NewLabels = Annotated[
    bool, typer.Option("--allow-new-labels", help="Let a model through whose labels are not the champion's.")
]
Lift = Annotated[
    bool, typer.Option("--lift-quarantine", help="Have services try a version again that they have refused.")
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model's name.")]


def register(app: typer.Typer) -> None:
    for command in (ship, train, export, promote, rollback, history):
        app.command(command.__name__)(command)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    force: Force = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Processes that share each batch, one a GPU; one without it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a recipe and log it in MLflow.

    A finished run of the same recipe, data and code is taken instead. One that was killed or stopped goes on from its
    last checkpoint, in its own run; --force begins anew.

    Several workers come to the result of one. They are processes of this machine, or of the Ray cluster at
    RAY_ADDRESS; torchrun may start them, too. Where one is lost all go on from the last checkpoint.

    \b
    Examples:
      stride train digits
      stride train fashion --set fit.epochs=5 --set optimizer.lr=3e-4 --json
      stride train fashion --workers 2
    """
    chosen = _load(recipe, overrides)
    with working():
        from services.training.distributed.front import fit_recipe

        result = fit_recipe(chosen, workers=workers, force=force)
    if result is None:  # the first worker answers
        return
    if as_json:
        answer_json(result.to_json())
        return
    how = "taken from an earlier run" if result.reused else f"{result.epochs} epochs in {result.seconds:.1f} s"
    if result.resumed and not result.reused:
        how += f", resumed {result.resumed} times" if result.resumed > 1 else ", resumed once"
    answer(f"run            {result.run_id}\nrecipe         {result.recipe} ({how})")
    answer(f"test accuracy  {result.test_accuracy:.4f}\ntest loss      {result.test_loss:.4f}")
    together = f", {result.workers} workers" if result.workers > 1 else ""
    answer(f"device         {result.device}, {result.precision}{together}, {result.images_per_second:,.0f} images/s")
    answer(f"plan           {result.plan}")
    if result.tracked:
        say(f"promote it with: stride promote {result.run_id}")
    else:
        say(f"MLflow does not have it yet; when it is back: stride sync, and then stride promote {result.run_id}")


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the bundle goes; $STRIDE_HOME/bundles/RUN without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a run to ONNX and prove it equal.

    Compared on all test images with the network that was fitted; the result is a bundle that can be served.

    \b
    Example:
      stride export 3f2a90c1d4e54b0c8a7b6c5d4e3f2a1b -o bundle
    """
    with working():
        from pipelines.export import export as make

        bundle = make(run, output=output, say=say)
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        answer_json({"path": str(bundle.path), "digest": bundle.digest, "manifest": manifest})
        return
    answer(f"bundle         {bundle.path}\nsha256         {bundle.digest}")
    answer(f"test accuracy  {bundle.manifest.metrics['test/accuracy']:.4f}, as onnxruntime answers")


def promote(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's id, or a registered model's name.")],
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="The version of that model.")] = None,
    allow_new_labels: NewLabels = False,
    lift_quarantine: Lift = False,
    as_json: Json = False,
) -> None:
    """Make a run or a version the champion.

    It passes the gate first; exits 2 where that says no, and the champion stays. A version that a service has tried
    and refused is in quarantine, and refused here too until that is lifted.

    \b
    Examples:
      stride promote 3f2a90c1d4e54b0c8a7b6c5d4e3f2a1b
      stride promote digits 4
      stride promote digits 4 --lift-quarantine
    """
    from pipelines import promotion, refusal

    try:
        with working():
            if version is not None:
                result = promotion.promote(
                    target, version, allow_new_labels=allow_new_labels, lift_quarantine=lift_quarantine, say=say
                )
            else:
                from pipelines.export import export as make

                bundle = make(target, say=say)
                result = promotion.submit(
                    bundle, target, allow_new_labels=allow_new_labels, lift_quarantine=lift_quarantine, say=say
                )
    except refusal.Refused as refused:
        if as_json:
            answer_json({"action": "refuse", "reasons": refused.verdict.reasons, "version": refused.champion})
        raise
    _show(result, as_json=as_json)


def rollback(
    model: ModelName,
    to: Annotated[str | None, typer.Option(help="This version; without it the former champion.")] = None,
    as_json: Json = False,
) -> None:
    """Make the former champion the champion again.

    \b
    Examples:
      stride rollback digits
      stride rollback digits --to 2
    """
    with working():
        from pipelines.promotion import rollback as roll

        result = roll(model, to=to, say=say)
    _show(result, as_json=as_json)


def history(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model instead of all.")] = None,
    as_json: Json = False,
) -> None:
    """Show promotions, refusals, rollbacks and challengers.

    \b
    Examples:
      stride history
      stride history digits --json
    """
    with working():
        from pipelines.history import history as read

        entries = read(model)
    if as_json:
        answer_json([entry.to_json() for entry in entries])
        return
    if not entries:
        answer("nothing has been promoted yet" if model is None else f"nothing has been promoted yet as '{model}'")
        return
    rows = [
        (e.at, e.model, e.action, e.from_version or "-", e.to_version or "-", e.state, (e.reasons or ("",))[0][:70])
        for e in entries
    ]
    answer(table(rows, ("at (UTC)", "model", "action", "from", "to", "state", "first reason")))
    for model_name, to, reason in dict.fromkeys((e.model, e.to_version, e.quarantined) for e in entries):
        if reason:
            answer(f"in quarantine: {model_name} version {to}, a service refuses it: {reason}")


def ship(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Names or YAML files of one model's recipes.", show_default=False),
    ],
    overrides: Overrides = None,
    force: Force = False,
    allow_new_labels: NewLabels = False,
    tuned: Annotated[bool, typer.Option("--tune/--no-tune", help="Look for a faster graph to serve.")] = True,
    as_json: Json = False,
) -> None:
    """Go the whole way, from recipe to champion.

    Fit, compare, export, prove, tune, pass the gate, promote the best. Exits 2 where the gate says no.

    \b
    Examples:
      stride ship digits
      stride ship digits digits-wide digits-batchnorm --json
      stride ship folder --set data.path=pictures --set model_name=pets
    """
    chosen = [_load(recipe, overrides) for recipe in recipes]
    with working():
        from pipelines.ship import ship as deliver

        result = deliver(chosen, force=force, allow_new_labels=allow_new_labels, tuned=tuned, say=say)
    if as_json:
        answer_json(result.to_json())
    else:
        answer(f"verdict        {result.verdict}")
        for reason in result.reasons:
            answer(f"               {reason}")
        answer(f"champion       {_champion(result)}")
        answer(f"run            {result.run_id}\ntest accuracy  {result.test_accuracy:.4f}")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from pipelines import recipe_files

    return recipe_files.load(recipe, overrides or ())


def _champion(result: ShipResult) -> str:
    if result.verdict == "refused":
        return f"{result.model} version {result.version}, as before" if result.version else "none, as before"
    before = f"before: version {result.former}" if result.former else "the first"
    address = f"a running service answers at /v1/models/{result.model}/predict within seconds"
    return f"{result.model} version {result.version} ({before}); {address}"


def _show(result: Promotion, *, as_json: bool) -> None:
    if as_json:
        content: dict[str, Any] = result.to_json()
        answer_json(content)
        return
    what = {"promote": "promoted", "rollback": "rolled back", "unchanged": "unchanged, it is the champion already"}
    answer(f"{what[result.action]}: {result.model} version {result.version} (before: {result.former or '-'})")
    if result.action != "unchanged":
        say("a running service follows within seconds")
    for reason in result.reasons[1:] if result.action == "unchanged" else ():
        say(reason)
