"""The Python API: a study as DataFrames, its runs, and its figures on matplotlib Axes.

>>> import seqlm
>>> study = seqlm.open_study("runs/optimizers")
>>> study
Study 'optimizers': 5 of 7 runs done, 1 failed, 1 pending
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from analysis.plots import behaviour as behaviour_figures
from analysis.plots import look, palette, scatter, slices
from analysis.plots.axes import unit_for
from analysis.plots.curves import curves_of, draw_curves, legend_entries, setting_curves
from analysis.plots.steps import draw_steps
from analysis.run import Run
from analysis.sections.behaviour import behaviour_data
from analysis.sections.cost import resources_of
from analysis.study import columns, units
from analysis.study import study as files
from analysis.study.difference import Difference, differences
from analysis.study.examined import examined_runs
from analysis.study.settings import geometric_mean, on_one_machine
from analysis.study.values import steps_of
from seqlm.environment import RUNS
from seqlm.errors import UsageError
from seqlm.naming import Candidate, ids_named
from seqlm.reading import exists
from seqlm.trace import read_trace

REPR_ROWS = 60
"""Runs that a notebook shows of a study."""

REPR_TEXTS = ["name", "arch", "optimizer", "state"]
REPR_PERPLEXITIES = ["train_ppl", "val_ppl", "test_ppl"]
REPR_COLUMNS = ["number", *REPR_TEXTS, "epochs_done", *REPR_PERPLEXITIES]


def open_study(paths: str | Path | Iterable[str | Path]) -> "Study":
    """Read the runs of one study, or of several together.

    The study may be running, unfinished or damaged: a run without a result stays in ``runs`` with its ``state`` and
    ``reason``, and ``warnings`` lists the files that cannot be read. Open it again to see what has changed.

    Args:
        paths: folder or name of one study or several, such as ``runs/paper``. Runs of several are numbered
            consecutively, and their ids begin with the study's name.

    >>> both = seqlm.open_study(["runs/optimizers", "runs/widths"])
    >>> both.name, len(both.runs)
    ('optimizers + widths', 9)

    Raises:
        UsageError: a folder holds no runs, or is given twice.
    """
    folders = [paths] if isinstance(paths, str | Path) else list(paths)
    if not folders:
        raise UsageError("paths: expected the folder of at least one study, got none")
    runs_dir = RUNS.read()
    named = [runs_dir / one if exists(runs_dir / one) and not exists(Path(one)) else Path(one) for one in folders]
    return Study(**vars(files.load_study(*named)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Study(files.StudyFiles):
    """What the files of a study hold. Get one from :func:`open_study`.

    ``runs``, ``epochs``, ``attempts`` and the properties below are DataFrames; docs/reference/columns.md lists their
    columns.

    >>> done = study.runs[study.runs["state"] == "done"]
    >>> done.nsmallest(3, "val_ppl")[["number", "name", "val_ppl"]].set_index("number")
                         name  val_ppl
    number
    4                gru-adam    110.0
    5       transformer-seed1    120.0
    6       transformer-seed2    124.0
    """

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row for each setting with a finished run: the mean over its seeds, with an interval.

        >>> study.results[["name", "seeds", "val_ppl", "val_ppl_low", "val_ppl_high"]].round(1)
                    name  seeds  val_ppl  val_ppl_low  val_ppl_high
        0       rnn-adam      1    150.0          NaN           NaN
        1  rnn-adam-wide      1    140.0          NaN           NaN
        2       gru-adam      1    110.0          NaN           NaN
        3    transformer      2    122.0         99.0         150.2
        """
        units.set_own_models(self.own_models)
        whole = {f"all_{key}": self.runs[key] for key in ("val_ppl", "test_ppl")}
        runs = self.compared.runs.assign(**whole).set_index("number")
        perplexities = ["train_ppl", "test_ppl", "final_train_ppl", "final_val_ppl", *whole]
        bits = ["val_bits_per_byte", "test_bits_per_byte"]
        rows = [
            {
                **vars(setting),
                **{key: geometric_mean(runs.loc[setting.runs][key].to_list()) for key in perplexities},
                **{key: runs.loc[list(setting.runs)][key].mean(skipna=False) for key in bits},
                "runs": tuple(setting.runs),
                "seeds": len(setting.runs),
                "epochs": runs.loc[setting.runs]["compared_epochs"].iloc[0],
                "val_ppl": setting.val_ppl,
                "val_ppl_low": setting.interval.low,
                "val_ppl_high": setting.interval.high,
                **setting.config,
            }
            for setting in self.compared.settings
        ]
        return pd.DataFrame(rows, columns=list(columns.RESULTS))

    @cached_property
    def resources(self) -> pd.DataFrame:
        """One row for each started run: what it asked for, what it used, and what would have been enough.

        >>> list(study.resources)[:5]
        ['number', 'id', 'cores', 'used_cores', 'enough_cores']
        """
        return resources_of(self)[list(columns.RESOURCES)]

    @cached_property
    def behaviour(self) -> pd.DataFrame:
        """One row for each point of a behaviour curve: loss at each time step, and gradients back in time.

        >>> study.behaviour[["number", "curve", "t", "value"]].head(2)
           number            curve  t  value
        0       4  loss_zero_state  1    6.0
        1       4  loss_zero_state  2    5.0
        """
        return behaviour_data(examined_runs(self))["behaviour"]

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row for each text that trained models wrote.

        >>> study.samples[["prompt", "text", "perplexity_own"]]
          prompt            text  perplexity_own
        0    the         cat sat            50.0
        1    the  dog ran on the            50.0
        """
        return behaviour_data(examined_runs(self))["samples"]

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """One row for each piece of validation text that samples are compared with; without its words.

        >>> study.held_out[["number", "rating", "known_pairs"]]
           number  rating  known_pairs
        0       4     4.0         0.75
        1       4     5.0         0.75
        """
        return behaviour_data(examined_runs(self))["held_out"]

    def columns(self, table: str) -> pd.DataFrame:
        """Describe the columns of a table of this study, such as ``epochs``.

        >>> study.columns("epochs").loc["val_loss", "unit"]
        'nats/token'

        Raises:
            UsageError: ``table`` is none of these.
        """
        if table not in columns.TABLES:
            raise UsageError(f"table: expected one of {', '.join(columns.TABLES)}, got {table!r}")
        rows = {name: (meaning.unit, meaning.text) for name, meaning in columns.TABLES[table].items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["unit", "meaning"])

    def run(self, which: str) -> Run:
        """Return a run by its name, its id or the beginning of that; ``"best"``: the lowest validation perplexity.

        >>> study.run("gru-sgd").state
        'failed'

        Raises:
            UsageError: no run is called so, or several are.
        """
        ids = self._ids_of([which])
        if len(ids) > 1:
            raise UsageError(f"run: {which!r} names several runs; use an id: {', '.join(ids)}")
        row = self.runs[self.runs["id"] == ids[0]].iloc[0]
        return Run(
            **{key: row[key] for key in ("number", "id", "name", "state")},
            directory=self.directory_of(row["id"]).path,
            metrics=self.epochs_of(row["id"]).drop(columns=["id", "number"]).reset_index(drop=True),
        )

    def _ids_of(self, names: Iterable[str]) -> list[str]:
        """Return the ids of the runs that are named, also by patterns such as ``gru*``.

        Raises:
            UsageError: a name is that of no run.
        """
        columns = zip(*(self.runs[key] for key in ("id", "name", "val_ppl", "text")), strict=True)
        runs = [Candidate(one, name, ppl if units.is_number(ppl) else None, text) for one, name, ppl, text in columns]
        found: list[str] = []
        for which in names:
            if not isinstance(which, str):
                raise UsageError(f"run: expected the name or id of a run of {self.name}, got {which!r}")
            found += ids_named(which, runs, self.name)
        return list(dict.fromkeys(found))

    def diff(self, a: str, b: str) -> pd.DataFrame:
        """Return how two runs, by name or id, differ: a row for each difference.

        If their losses differ, the last row has ``epoch`` and ``step`` of the first difference, both from 0.

        >>> study.diff("transformer-seed1", "transformer-seed2")[["kind", "key", "a", "b"]].head(1)
                    kind   key  a  b
        0  configuration  seed  1  2

        Raises:
            UsageError: no run is called so, or several are.
        """
        found = differences(*(self.directory_of(self.run(which).id) for which in (a, b)))
        table = pd.DataFrame(found, columns=list(Difference._fields), dtype=object)
        return table.astype({"epoch": "Int64", "step": "Int64"})

    def steps(self, which: str) -> pd.DataFrame:
        """One row for each training step of a run; none if it has no trace (``steps.f32``).

        >>> list(study.steps("gru-adam"))
        ['epoch', 'step', 'loss', 'grad_norm', 'seconds', 'lr']

        Raises:
            UsageError: no run is called so, or several are.
            FileError: a file of the run cannot be read.
        """
        run = self.directory_of(self.run(which).id)
        if (trace := read_trace(run)) is None:
            return columns.table_of("steps", ())
        table = pd.DataFrame(steps_of(trace).astype(np.float64), columns=["loss", "grad_norm", "seconds"])
        table.insert(0, "epoch", table.index // trace.steps)
        table.insert(1, "step", table.index % trace.steps)
        rate = run.read_config().optim.learning_rate
        return table.assign(lr=[rate(*place, trace.steps) for place in zip(table["epoch"], table["step"], strict=True)])

    # -- figures -------------------------------------------------------------------------------------------------------

    def plot_curves(
        self,
        ax: Axes | None = None,
        *,
        runs: Iterable[str] | None = None,
        progress: Literal["epochs", "time"] = "epochs",
        mean_of_seeds: bool = False,
    ) -> Axes:
        """Draw the validation perplexity of runs. Colour: architecture; dashes and marker: optimizer.

        Of more than 24 curves, all but the best ten are grey and without legend.

        Args:
            ax: where to draw; ``None``: a new figure. The same holds for the other figures.
            runs: ids, names or patterns such as ``gru*``; ``None``: all runs with a finished epoch.
            progress: ``"epochs"``, or ``"time"`` for wall-clock time.
            mean_of_seeds: draw a setting's finished seeds as their mean, with a band from lowest to highest.

        >>> axes = study.plot_curves(runs=["rnn-adam", "gru*"], mean_of_seeds=True)
        >>> axes.get_ylabel()
        'Validation perplexity'

        Raises:
            UsageError: no run is called so, or several are.
        """
        chosen = None if runs is None else self._ids_of(runs)
        kept = None if chosen is None else set(self.runs["number"][self.runs["id"].isin(chosen)])
        curves = [curve for curve in curves_of(self) if curve.is_validated]
        curves = [curve for curve in curves if kept is None or curve.number in kept]
        curves = setting_curves(self, curves) if mean_of_seeds else curves

        def draw(axes: Axes) -> None:
            siblings = axes.get_shared_y_axes().get_siblings(axes)
            limits = [other.get_ylim() for other in siblings if other.has_data()]
            draw_curves(axes, curves, unit_for(self.epochs["elapsed_seconds"].max()) if progress == "time" else None)
            limits.append(axes.get_ylim())
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))

        return self._drawn(ax, draw, curves, legend_entries, "No epoch has been finished")

    def plot_steps(self, which: str, ax: Axes | None = None, *, value: str = "loss") -> Axes:
        """Draw a column of :meth:`steps` of a run over its epochs: mean and range of each 100th of the steps.

        >>> axes = study.plot_steps("gru-adam", value="grad_norm")

        Raises:
            UsageError: no run is called so, several are, or ``value`` is no column.
            FileError: a file of the run cannot be read.
        """
        table = self.steps(which)
        if value not in table:
            raise UsageError(f"value: expected one of {', '.join(map(str, table))}, got {value!r}")
        values, meaning = table[value].to_numpy(float), columns.STEPS[value]
        epochs = table["epoch"].to_numpy(float) + (table["step"].to_numpy(float) + 1) / (table["step"].max() + 1)

        def draw(axes: Axes) -> None:
            draw_steps(axes, epochs, values, color=palette.PALETTE[0])
            axes.set_ylabel(f"{meaning.text}{f' ({meaning.unit})' if meaning.unit else ''}")

        return self._drawn(ax, draw, [*table.index], lambda _: (), "The run has no trace of its steps")

    def plot_times(self, ax: Axes | None = None) -> Axes:
        """Draw the best validation perplexity of each setting against the time to it.

        If the runs were trained on several machines, it draws the settings on the machine of the most.

        >>> axes = study.plot_times()
        """
        settings = on_one_machine([one for one in self.compared.settings if units.is_number(one.seconds_to_best)])
        draw = partial(scatter.draw_times, settings=settings)
        return self._drawn(ax, draw, settings, scatter.time_handles, "No run has finished")

    def plot_effects(self, key: str, ax: Axes | None = None) -> Axes:
        """Draw the best validation perplexity of settings with finished runs over one hyperparameter.

        Lines join settings that agree in every other key.

        Args:
            key: a key of the configuration that varies in the study, or its last word, such as ``lr``.
            ax: where to draw; ``None``: a new figure.

        >>> axes = study.plot_effects("model.hidden_size")
        >>> axes.get_xlabel()
        'model.hidden_size'

        Raises:
            UsageError: the key does not vary between finished runs.
        """
        settings = self.compared.settings
        found = slices.slice_keys(settings)
        meant = [one for one in found if key in (one, one.rpartition(".")[2])]
        if len(meant) != 1:
            varying = ", ".join(found) or "here none does"
            raise UsageError(f"key: expected one that varies between finished runs ({varying}), got {key!r}")
        draw = partial(slices.draw_slice, key=meant[0], settings=settings)
        return self._drawn(ax, draw, settings, slices.kind_handles)

    def plot_step_losses(self, ax: Axes | None = None, *, carried: bool = True) -> Axes:
        """Draw the mean validation loss at each time step of a window, in nats.

        Args:
            ax: where to draw; ``None``: a new figure.
            carried: start each window with the state of the window before; otherwise with the zero state.

        >>> axes = study.plot_step_losses(carried=False)
        """
        runs = [run for run in examined_runs(self) if run.is_shown]

        def draw(axes: Axes) -> None:
            behaviour_figures.draw_losses(axes, runs, carried=carried).set_ylabel("Mean validation loss (nats)")

        return self._drawn(ax, draw, runs, behaviour_figures.run_handles, "No behaviour has been computed")

    def plot_gradient_norms(self, ax: Axes | None = None) -> Axes:
        """Draw the norm of the gradient of the last step's loss with respect to the hidden states at each step.

        >>> axes = study.plot_gradient_norms()
        >>> axes.get_yscale()
        'log'
        """
        runs = [run for run in examined_runs(self) if run.is_shown and run.gradients]
        draw = partial(behaviour_figures.draw_gradient_norms, runs=runs)
        pale = Line2D([], [], color=look.MUTED, alpha=0.5, linewidth=0.9, label="mean of the sequences' norms")
        return self._drawn(
            ax, draw, runs, lambda runs: [*behaviour_figures.run_handles(runs), pale], "No behaviour has been computed"
        )

    def _drawn(
        self,
        ax: Axes | None,
        draw: Callable[[Axes], object],
        shown: list[Any],
        handles: Callable[[list[Any]], Iterable[Artist]],
        missing: str = "",
    ) -> Axes:
        """Draw what is shown in the look of the report, with its legend; of nothing say what is missing.

        A notebook's backend changes settings when it is loaded, and the end of the look would reset them, so it is
        loaded first if a new figure is to be shown.
        """
        units.set_own_models(self.own_models)
        if ax is None:
            pyplot.draw_if_interactive()  # type: ignore[no-untyped-call]
        with look.applied():
            axes = _axes(ax, handles(shown) if shown else ())
            if shown:
                draw(axes)
            else:
                axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center", color=look.MUTED)
                axes.set(xticks=[], yticks=[])
        return axes

    # -- in a notebook -------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Study {self.name!r}: {self._progress()}"

    def _repr_html_(self) -> str:
        shown = self.runs[REPR_COLUMNS].head(REPR_ROWS).style.hide(axis="index").set_uuid("study")
        shown.format(dict.fromkeys(REPR_PERPLEXITIES, units.perplexity), na_rep=units.MISSING, escape="html")
        left: Any = [{"selector": "", "props": "text-align: left"}]
        table = shown.set_table_styles(dict.fromkeys(REPR_TEXTS, left)).to_html()
        more = f"<p>… and {len(self.runs) - REPR_ROWS:,} more</p>" if len(self.runs) > REPR_ROWS else ""
        warnings = "".join(f"<li>{escape(line)}</li>" for line in self.warnings)
        count = units.count(len(self.warnings), "warning")
        folded = f"<details><summary>{count}</summary><ul>{warnings}</ul></details>" if warnings else ""
        return f"<h4>Study {escape(self.name)}</h4><p>{self._progress()}</p>{table}{more}{folded}"

    def _progress(self) -> str:
        counts = self.runs["state"].value_counts().to_dict() | ({"absent": len(self.absent)} if self.absent else {})
        others = [f", {number} {state}" for state, number in sorted(counts.items()) if state != "done"]
        return f"{counts.get('done', 0)} of {units.count(sum(counts.values()), 'run')} done{''.join(others)}"


# -- parts -------------------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None, handles: Iterable[Artist]) -> Axes:
    """Return ``ax``, or the Axes of a new figure, with a legend on its right and in its final size.

    ``ax`` was made with other settings, so it is given the report's grid and open frame.
    """
    if ax is None:
        layout = ConstrainedLayoutEngine(h_pad=0.08)  # room for half a number at the top of the axes
        ax = pyplot.subplots(figsize=(look.WIDTH_INCHES + 1.4, 3.9), layout=layout)[1]
    else:
        ax.set_axisbelow(True)
        ax.grid(visible=True, color=look.GRID, linewidth=0.7)
        ax.spines[["top", "right"]].set_visible(False)
    entries = list(handles)
    if entries:
        ax.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.04, 1.0), fontsize=8, handlelength=3.0)
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes belong to a figure"
    figure.draw_without_rendering()
    return ax
