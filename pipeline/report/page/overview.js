"use strict";
// The page of a folder of trials.
(() => {
  const { data, byId, percent, count, make, table, scores, joining } = shared;
  const finished = data.trials.filter((trial) => !trial.stopped);
  byId("made").textContent = `${data.trials.length} trials on ${count(finished[0]?.images ?? 0)} images.`;

  const figure = (value, digits = 3) => (value === null || value === undefined ? "" : value.toFixed(digits));
  const settings = Object.keys(data.trials[0].settings);
  const columns = [
    ["trial", (trial) => (trial.link ? [make("a", { href: trial.link, textContent: trial.trial })] : trial.trial)],
    ...settings.map((name) => [name, (trial) => String(trial.settings[name])]),
    ["loss", (trial) => figure(Math.min(...trial.head_loss), 4)],
    ["neighbors in own cluster", (trial) => (trial.neighbor_consistency === null ? "" : percent(trial.neighbor_consistency, 1))],
    ["heads agree", (trial) => figure(trial.head_agreement)],
    ["confidence", (trial) => percent(trial.mean_confidence, 1)],
    ["clusters used", (trial) => count(trial.used_clusters)],
    ["smallest", (trial) => count(trial.smallest_cluster)],
    ["largest", (trial) => count(trial.largest_cluster)],
    ["seconds", (trial) => figure(trial.seconds, 1)],
    ["its report", (trial) => (trial.link ? [make("a", { href: trial.link, textContent: "open" })] : [make("code", { textContent: trial.command })])],
  ];
  byId("trials-table").append(table("by scores that need no label", columns, finished));
  data.trials.filter((trial) => trial.stopped).forEach((trial) => byId("trials-table").append(make("p", { className: "note", textContent: `${trial.trial}: ${trial.stopped}` })));

  byId("labels").hidden = byId("to-labels").hidden = !data.comparison.length;
  data.comparison.forEach((part) => byId("comparison").append(scores(part)));

  byId("levels").hidden = byId("to-levels").hidden = !data.trees.length;
  byId("missing").hidden = !data.missing;
  byId("missing").textContent = data.missing ? `No pictures: ${data.missing}.` : "";
  data.trees.forEach((tree) => byId("joining").append(joining(tree)));
  document.documentElement.dataset.ready = "yes";
})();
