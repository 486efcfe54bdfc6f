"use strict";
// The page of a folder of trials.
(() => {
  const { data, byId, percent, count, counted, make, table, scores, joining } = shared;
  const trials = data.trials.map(({ record, link }) => ({ ...record.training, ...record, link }));
  const finished = trials.filter((trial) => !trial.stopped);
  byId("made").textContent = `${counted(trials.length, "trial")} on ${counted(finished[0]?.images ?? 0, "image")}.`;

  const figure = (value, digits = 3) => (value == null ? "" : value.toFixed(digits));
  const settings = Object.keys(trials[0].settings);
  const least = (trial) => Math.min(...trial.head_loss);
  // heading, cell, the number or text that the table sorts by
  const numbers = (heading, value, show) => [heading, (trial) => show(value(trial)), (trial) => value(trial) ?? -1];
  const columns = [
    ["trial", (trial) => [trial.link ? make("a", { href: trial.link, textContent: trial.trial }) : trial.trial, ...(data.best[trial.trial] ? [` (${data.best[trial.trial]})`] : [])], (trial) => trial.trial],
    ...settings.map((name) => [name, (trial) => String(trial.settings[name]), (trial) => trial.settings[name]]),
    numbers("loss", least, (value) => figure(value, 4)),
    numbers("neighbors in own cluster", (trial) => trial.neighbor_consistency, (value) => (value == null ? "" : percent(value, 1))),
    numbers("heads agree", (trial) => trial.head_agreement, figure),
    numbers("confidence", (trial) => trial.mean_confidence, (value) => percent(value, 1)),
    numbers("clusters used", (trial) => trial.used_clusters, count),
    numbers("smallest", (trial) => trial.smallest_cluster, count),
    numbers("largest", (trial) => trial.largest_cluster, count),
    numbers("seconds", (trial) => trial.seconds, (value) => figure(value, 1)),
  ];
  const rows = finished.map((trial) => ({ ...trial, kind: data.best[trial.trial] ? "best" : "" }));
  byId("trials-table").append(table("by scores that need no label", columns, rows, true));
  trials.filter((trial) => trial.stopped).forEach((trial) => byId("trials-table").append(make("p", { className: "note", textContent: `${trial.trial}: ${trial.stopped}` })));

  const bare = finished.find((trial) => !trial.link);
  if (bare) byId("trials-table").append(make("p", { className: "lead", textContent: `A name leads to the report of its trial where there is one: temi report RUNS/${bare.trial} writes it, and temi report RUNS then writes this page anew.` }));

  const scored = data.comparison.filter((part) => part.rows.some((row) => "acc" in row));  // without labels, only sizes
  byId("labels").hidden = byId("to-labels").hidden = !scored.length;
  scored.forEach((part) => byId("comparison").append(scores(part)));

  byId("levels").hidden = byId("to-levels").hidden = !data.trees.length;
  byId("missing").hidden = !data.missing;
  byId("missing").textContent = data.missing ? `No pictures: ${data.missing}.` : "";
  data.trees.forEach((tree) => byId("joining").append(joining(tree)));
  document.documentElement.dataset.ready = "yes";
})();
