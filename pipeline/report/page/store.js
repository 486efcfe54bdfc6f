"use strict";
// The images and clusters of a run, corrections replayed on them. Of the same entries, replay makes here what
// pipeline/results/corrections.py makes of them there; the tests compare the two.
const store = (() => {
  const { data, served } = shared;
  const { images } = data;
  const count = images.key.length;
  const REMOVED = -1;
  const entries = [...data.entries];
  const listeners = [];
  let made = 0;  // entries of this page that neither a server nor a saved file has
  let asking = false, stale = false;
  let state, groups, taken, places;

  const place = (key) => {
    places ??= new Map(images.key.map((name, i) => [name, i]));
    return places.get(key) ?? -1;  // an image that is not in this page, a sample
  };

  function history() {
    const done = [], undone = [];
    for (const entry of entries) {
      if (entry.action === "undo") { if (done.length) undone.push(done.pop()); }
      else if (entry.action === "redo") { if (undone.length) done.push(undone.pop()); }
      else { done.push(entry); undone.length = 0; }
    }
    return { done, undone };
  }

  function replay() {
    state = { cluster: Int32Array.from(images.cluster), second: Int32Array.from(images.second), byHand: new Uint8Array(count),
      outside: new Map(Object.entries(data.base.outside)), clusters: data.base.clusters, merged: new Set(), names: new Map(Object.entries(data.base.names).map(([c, name]) => [Number(c), name])), notes: [] };
    // images of each cluster that are not in this page
    state.absent = data.base.sizes.slice();
    for (const c of state.cluster) state.absent[c] -= 1;
    const { done, undone } = history();
    done.forEach(apply);
    state.canUndo = done.length > 0;
    state.canRedo = undone.length > 0;
    state.last = done.at(-1);
    groups = Array.from({ length: state.clusters }, () => []);
    taken = [];
    state.cluster.forEach((c, i) => (c === REMOVED ? taken : groups[c]).push(i));
  }

  function set(keys, cluster, byHand) {
    state.clusters = Math.max(state.clusters, cluster + 1);
    while (state.absent.length < state.clusters) state.absent.push(0);
    for (const key of keys) {
      const i = place(key);
      if (i < 0) { setOutside(key, cluster); continue; }
      state.cluster[i] = cluster;
      if (byHand) state.byHand[i] = 1;
    }
  }

  // An image that is not in this page counts in the size of its cluster.
  function setOutside(key, cluster) {
    const before = state.outside.get(key);
    if (before >= 0) state.absent[before] -= 1;
    if (cluster !== REMOVED) state.absent[cluster] += 1;
    state.outside.set(key, cluster);
  }

  function apply(entry) {
    if (entry.action === "merge") {
      const [first, ...others] = entry.clusters, gone = new Set(others);
      for (let i = 0; i < count; i += 1) {
        if (gone.has(state.cluster[i])) state.cluster[i] = first;
        if (gone.has(state.second[i])) state.second[i] = first;
      }
      state.outside.forEach((c, key) => { if (gone.has(c)) state.outside.set(key, first); });
      const lost = others.map((c) => state.names.get(c)).filter(Boolean);
      others.forEach((c) => { state.merged.add(c); state.names.delete(c); state.absent[first] += state.absent[c]; state.absent[c] = 0; });
      if (lost.length && !state.names.get(first)) state.names.set(first, lost[0]);
    } else if (entry.action === "split") entry.into.forEach((c, part) => set(entry.keys[part], c, false));
    else if (entry.action === "move") set(entry.keys, entry.to, true);
    else if (entry.action === "remove") set(entry.keys, REMOVED, true);
    else if (entry.action === "rename") Object.entries(entry.names).forEach(([c, name]) => (name ? state.names.set(Number(c), name) : state.names.delete(Number(c))));
    else if (entry.action === "note") state.notes.push(entry);
  }

  // Sends a correction, with how many entries this page knows. Resolves to "" or what is wrong.
  async function send(action) {
    const answer = await fetch(`edit?known=${entries.length}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(action) })
      .catch(() => null);
    if (!answer) return "The server does not answer; start it again with temi serve. What was said before is kept.";
    const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    stale = answer.status === 409;
    if (!answer.ok) return told.error;
    entries.push(...told.entries);
    return "";
  }

  // Makes a correction: the server's answer counts where there is one. Resolves to "", what is wrong, or null: not
  // done, as the one before is still on its way.
  async function edit(action) {
    if (asking) return null;
    if (served) {
      asking = true;
      const problem = await send(action).finally(() => { asking = false; });
      if (problem) return problem;
    } else {
      entries.push({ ...action, when: new Date().toISOString() });  // to the millisecond, which tells it from others
      made += 1;
    }
    replay();
    listeners.forEach((listen) => listen(entries.at(-1)));
    return "";
  }

  // Asks the server for images; what is wrong is said in `problem`.
  async function ask(address, request) {
    const answer = await fetch(address, request).catch(() => null);
    if (!answer) return { images: [], problem: "The server does not answer; start it again with temi serve." };
    const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    return { images: told.images ?? [], problem: told.error ?? "" };
  }

  const collator = new Intl.Collator("en", { numeric: true });
  const margin = (i) => confidence(i) - (state.second[i] === state.cluster[i] ? 0 : images.runner[i]);
  const confidence = (i) => (state.byHand[i] ? 1 : images.confidence[i]);
  const ORDERS = {
    typical: (a, b) => images.typical[b] - images.typical[a],
    unsure: (a, b) => margin(a) - margin(b),
    new: (a, b) => images.likeness[a] - images.likeness[b],
    name: (a, b) => collator.compare(images.key[a], images.key[b]),
  };

  // `list` with near-duplicates as one: [image, all that it stands for] each; single() leaves them apart.
  const single = (list) => list.map((image) => [image, [image]]);
  function folded(list) {
    const first = new Map(), shown = [];
    for (const image of list) {
      const group = images.group[image];
      const before = group < 0 ? undefined : first.get(group);
      if (before) before[1].push(image);
      else {
        const cell = [image, [image]];
        if (group >= 0) first.set(group, cell);
        shown.push(cell);
      }
    }
    return shown;
  }

  replay();
  return {
    data, images, count, REMOVED, ORDERS, ask, edit, folded, single, margin, confidence,
    get state() { return state; },
    get unsaved() { return made; },
    get stale() { return stale; },
    get since() { return entries.length - data.entries.length; },  // entries since the page was loaded
    get removed() { return taken.length + [...state.outside.values()].filter((c) => c === REMOVED).length; },
    lines: () => entries.slice(entries.length - made).map((entry) => JSON.stringify(entry)).join("\n") + "\n",
    saved: () => { made = 0; },
    onChange: (listen) => listeners.push(listen),
    members: (cluster) => (cluster === REMOVED ? taken : groups[cluster] ?? []),
    size: (cluster) => (groups[cluster]?.length ?? 0) + (state.absent[cluster] ?? 0),
    clusters: () => Array.from({ length: state.clusters }, (_, c) => c).filter((c) => !state.merged.has(c) && (groups[c].length || state.absent[c])),
    name: (cluster) => (cluster === REMOVED ? "removed" : state.names.get(cluster) || `cluster ${cluster}`),
    sorted: (list, order) => [...list].sort(ORDERS[order]),
    // Similar images: from the server, which knows all of them, or those that the page knows.
    similar: async (image, many) => {
      if (!served) return images.near[image].filter((other) => other >= 0).slice(0, many);
      return (await ask(`similar/${images.row[image]}?count=${many}`)).images;
    },
  };
})();
