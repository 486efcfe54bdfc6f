"use strict";
// Grids of images, page by page; what is selected in them; one image large.
const gallery = (() => {
  const { byId, make, picture, percent, count, counted, source, pixelated, served } = shared;
  const { images } = store;
  const PAGE = 60;
  const selected = new Set();
  const address = (cluster) => (cluster === store.REMOVED ? "#removed" : `#cluster-${cluster}`);
  let fading = 0;
  function said(text, problem = false, stays = problem) {
    byId("said").textContent = text;
    byId("said").classList.toggle("problem", problem);
    clearTimeout(fading);
    if (!stays) fading = setTimeout(() => { byId("said").textContent = ""; }, 8000);
  }

  // Shows `cells`, [image, all that it stands for] each, in `host`, PAGE at a time.
  function grid(host, cells, empty = "No images.") {
    const list = make("ul", { className: "grid" });
    const more = make("button", { type: "button", className: "more-images" });
    let shown = 0;
    const next = () => {
      list.append(...cells.slice(shown, shown + PAGE).map(([image, stack]) => cell(image, stack, cells)));
      shown = Math.min(cells.length, shown + PAGE);
      more.hidden = shown === cells.length;
      more.textContent = `Show more (${count(shown)} of ${count(cells.length)})`;
    };
    more.onclick = () => { const focus = shown; next(); list.children[focus]?.querySelector("button").focus(); };
    next();
    new IntersectionObserver(([seen]) => { if (seen.isIntersecting && !more.hidden && cells.length) next(); }, { rootMargin: "600px" }).observe(more);
    host.replaceChildren(cells.length ? list : make("p", { className: "lead", textContent: empty }), more);
  }

  function cell(image, stack, cells) {
    const text = `${images.key[image]}, ${store.name(store.state.cluster[image])}`;
    const open = make("button", { type: "button", className: "open", onclick: () => view(image, cells) }, picture(image, text));
    const more = stack.length > 1 ? ` and ${counted(stack.length - 1, "near-duplicate")}` : "";
    const mark = make("input", { type: "checkbox", ariaLabel: `Select ${images.key[image]}${more}` });
    mark.onchange = () => select(stack, mark.checked);
    const item = make("li", {}, open, mark);
    item.dataset.image = image;
    item.stack = stack;
    tick(item);
    if (more) item.append(make("span", { className: "stands", textContent: `×${stack.length}`, title: `${stack.length} near-duplicates` }));
    return item;
  }

  // Of a stack whose images are not all selected, the box is neither on nor off.
  function tick(item) {
    const on = item.stack.filter((image) => selected.has(image)).length, mark = item.querySelector("input");
    item.classList.toggle("chosen", on > 0);
    mark.checked = on === item.stack.length;
    mark.indeterminate = on > 0 && !mark.checked;
  }

  function select(list, on = true) {
    list.forEach((image) => (on ? selected.add(image) : selected.delete(image)));
    document.querySelectorAll(".grid > li").forEach(tick);
    byId("picked").textContent = `${count(selected.size)} selected`;
    byId("selection").hidden = !selected.size;
    document.dispatchEvent(new Event("selection"));
  }

  // ---- one image
  const dialog = byId("viewer");
  let current = 0, around = [];  // cells, through which the arrow keys walk

  function view(image, cells) {
    around = cells.length ? cells : store.single([image]);
    show(image);
    if (!dialog.open) dialog.showModal();
  }

  function show(image) {
    current = image;
    const { cluster, second } = store.state;
    const large = byId("large");
    large.classList.remove("tiny");
    large.onload = () => pixelated(large);
    large.onerror = () => { large.onerror = null; large.src = source(image); };
    large.alt = images.key[image];
    large.src = served && !store.data.missing ? `image/${images.row[image]}` : source(image) || "data:,";
    byId("large-name").textContent = images.key[image];
    const own = cluster[image], other = second[image], removed = own === store.REMOVED;
    const facts = [["cluster", [make("a", { href: address(own), textContent: store.name(own), onclick: () => dialog.close() }), removed ? ": a person took it out of all clusters" : ""]]];
    if (!removed) facts.push(["confidence", [store.state.byHand[image] ? "put here by a person" : percent(images.confidence[image], 1)]]);
    if (!removed && other !== own && images.runner[image] > 0) facts.push(["second", [`${store.name(other)}, ${percent(images.runner[image], 1)}`]]);
    if (images.label.length) facts.push(["label", [images.label[image] < 0 ? "unknown" : store.data.classes[images.label[image]] ?? `class ${images.label[image]}`]]);
    if (store.data.odd[image]) facts.push(["pixels", [store.data.odd[image]]]);
    if (images.strange[image]) facts.push(["unusual", ["unlike the others"]]);
    const notes = store.state.notes.filter((note) => note.keys?.includes(images.key[image]));
    notes.forEach((note) => facts.push(["note", [note.text]]));
    byId("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, ...value))));
    const stack = stackOf(image);
    byId("large-select").checked = stack.every((one) => selected.has(one));
    byId("large-stack").textContent = stack.length > 1 ? ` with ${counted(stack.length - 1, "near-duplicate")}` : "";
    byId("large-place").textContent = around.length > 1 && at() >= 0 ? `${count(at() + 1)} of ${count(around.length)}` : "";
    byId("similar").replaceChildren();
    if (served && !removed) views(image);
    store.similar(image, 8).then((found) => {
      if (current !== image) return;
      byId("similar").replaceChildren(...found.map((other) => make("li", {}, make("button", { type: "button", className: "open", onclick: () => show(other) }, picture(other, images.key[other])))));
    });
  }

  async function views(image) {
    const answer = await fetch(`views/${images.row[image]}`).catch(() => null);
    const { views: together } = answer?.ok ? await answer.json() : {};
    if (current !== image || together === undefined || together === null) return;
    const where = store.state.cluster[image] === images.cluster[image] ? "in this cluster" : "in its cluster as trained";
    byId("facts").append(make("div", {}, make("dt", { textContent: "views" }), make("dd", { textContent: `${percent(together)} of its views ${where}` })));
  }

  const at = () => around.findIndex(([image]) => image === current);
  const stackOf = (image) => around.find(([other]) => other === image)?.[1] ?? [image];  // a similar one is in no cell
  const step = (by) => show(around[(at() + by + around.length) % around.length][0]);

  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "x") byId("large-select").click();
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  byId("next").onclick = () => step(1);
  byId("previous").onclick = () => step(-1);
  byId("close").onclick = () => dialog.close();
  byId("large-select").onchange = (event) => select(stackOf(current), event.target.checked);
  byId("alike").onclick = () => { dialog.close(); location.hash = `#like-${current}`; };

  // The arrow keys walk through a grid, x selects.
  document.addEventListener("keydown", (event) => {
    const item = event.target.closest?.(".grid > li");
    if (!item || event.target.type === "checkbox") return;
    const columns = getComputedStyle(item.parentNode).gridTemplateColumns.split(" ").length;
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const items = [...item.parentNode.children];
    if (by) items[items.indexOf(item) + by]?.querySelector("button").focus();
    else if (event.key === "x") item.querySelector("input").click();
    else return;
    event.preventDefault();
  });

  return { address, grid, select, selected, view, said, current: () => current };
})();
