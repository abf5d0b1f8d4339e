"""The verbs that share a set: ``push`` to the Hugging Face Hub, and ``pull`` from it.

What is heavy is imported when a verb runs, so that ``--help`` answers at once. The token is the one
that ``huggingface_hub`` finds (``hf auth login``, or HF_TOKEN): it is no setting and is never shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.cli.options import POSITIONAL, parse_options
from pipeline.cli.process import prepare_libraries
from pipeline.cli.streams import say, say_json
from pipeline.view.stages import show_stage


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Settings of ``context-frozen push``."""

    set: str = field(metadata=POSITIONAL)
    """Folder of a saved set."""

    repo: str = field(metadata=POSITIONAL)
    """Data set repository on the Hub, ORG/NAME; made where it is not there."""

    public: bool = False
    """Let everyone see it. Without with_provenance the columns reason, memories and source, the
    rejects and all quoted text stay here; the tokens go, and can be decoded."""

    with_provenance: bool = False
    """Also make public where rows came from and why, and the text that card and report quote."""

    config_name: str = "default"
    """Name of the set in the repository, which can hold several: one for each tokenizer or template."""

    revision: str | None = None
    """Branch to push to, made where it is not there; by default main."""

    create_pr: bool = False
    """Open a pull request in place of pushing to the branch."""

    overwrite: bool = False
    """Replace another set, or other data, of that config name."""

    json: bool = False
    """Print what was done as JSON."""


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Settings of ``context-frozen pull``."""

    repo: str = field(metadata=POSITIONAL)
    """Data set repository on the Hub, ORG/NAME."""

    output: str = field(metadata=POSITIONAL)
    """Folder of the data set to write."""

    config_name: str = "default"
    """Name of the set in the repository."""

    revision: str | None = None
    """Branch, tag or commit; by default main."""

    overwrite: bool = False
    """Replace what stands at the output."""

    json: bool = False
    """Print what was done as JSON."""


def run_push(args: Sequence[str]) -> int:
    """Run ``push``: a set to the Hub; say where it is and what stayed here."""
    options = parse_options(PushOptions, args, "push")
    show_stage(f"pushing {options.set} to {options.repo}")
    prepare_libraries()
    _keep_libraries_quiet()
    from pipeline.sets.hub.push import push_set
    from pipeline.sets.hub.push_rules import PushChoice

    choice = PushChoice(
        public=options.public,
        with_provenance=options.with_provenance,
        config_name=options.config_name,
        revision=options.revision,
        create_pr=options.create_pr,
        overwrite=options.overwrite,
    )
    pushed = push_set(options.set, options.repo, choice)
    manifest = pushed.manifest
    if options.json:
        figures = {
            "repo": pushed.place.repo,
            "config_name": pushed.place.config_name,
            "revision": pushed.revision,
            "private": pushed.is_private,
            "was_there": pushed.was_there,
            **_count_rows(manifest),
        }
        say_json(figures)
        return 0
    done = "is there already, same seal and digest" if pushed.was_there else "pushed"
    say(
        f"{pushed.place.repo} ({pushed.place.config_name}, {pushed.revision}): {done}, "
        f"{'private' if pushed.is_private else 'public'}" + _describe_rows(manifest)
    )
    if options.public and pushed.is_private:
        print("  the repository stays private: change that in its settings on the Hub")
    return 0


def run_pull(args: Sequence[str]) -> int:
    """Run ``pull``: a set from the Hub, verified; say where it is and what it lacks."""
    options = parse_options(PullOptions, args, "pull")
    show_stage(f"pulling {options.repo}")
    prepare_libraries()
    _keep_libraries_quiet()
    from pipeline.sets.hub.pull import PullChoice, pull_set

    choice = PullChoice(
        config_name=options.config_name, revision=options.revision, overwrite=options.overwrite
    )
    pulled = pull_set(options.repo, options.output, choice)
    manifest = pulled.manifest
    if options.json:
        figures = {
            "output": str(pulled.output),
            "was_there": pulled.was_there,
            **_count_rows(manifest),
        }
        say_json(figures)
        return 0
    done = "is there already" if pulled.was_there else "pulled and verified"
    say(f"{pulled.output}: {done}" + _describe_rows(manifest))
    return 0


def _count_rows(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both verbs say of the rows in JSON."""
    from pipeline.sets.manifest import left_out_of

    return {
        "digest": manifest["digest"],
        "rows": manifest["counts"]["rows"],
        "left_out": left_out_of(manifest),
    }


def _describe_rows(manifest: Mapping[str, Any]) -> str:
    """Return what both verbs say of the rows in words: how many, their digest, what they lack."""
    from pipeline.sets.manifest import left_out_of

    left_out = left_out_of(manifest)
    parts = [f"{kind} {', '.join(names)}" for kind, names in left_out.items() if names]
    lacking = f"\n  left out when it was pushed: {'; '.join(parts)}" if parts else ""
    return f"\n  {manifest['counts']['rows']} rows, digest {manifest['digest']}{lacking}"


def _keep_libraries_quiet() -> None:
    """Keep bars off a log file, and what `datasets` says of its processes off the terminal."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
