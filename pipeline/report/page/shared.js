"use strict";
// What the pages share: reading the JSON block, making elements, tables of scores, the tree of joining clusters.
// Text from a run goes in by textContent only.
const shared = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
  const count = (number) => number.toLocaleString("en");
  const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // Small pictures: from a server, or in blocks of JSON inside the page, each read when it is first needed.
  const served = "served" in document.documentElement.dataset;
  const blocks = [...document.querySelectorAll("script.pictures")];
  const read = [];
  function source(image) {
    if (served) return data.missing ? "" : `thumb/${data.images.row[image]}`;
    const block = Math.floor(image / data.chunk);
    if (!blocks[block]) return "";
    read[block] ??= JSON.parse(blocks[block].textContent);
    const webp = read[block][image % data.chunk];
    return webp ? `data:image/webp;base64,${webp}` : "";
  }

  // Small pictures of digits and icons stay sharp.
  const pixelated = (element) => element.classList.toggle("tiny", Math.max(element.naturalWidth, element.naturalHeight) < 48);

  function picture(image, text) {
    const address = source(image);
    if (!address) return make("span", { textContent: data.images.key[image], title: text });
    const element = make("img", { alt: text, title: text, decoding: "async", loading: "lazy" });
    element.onload = () => pixelated(element);
    element.onerror = () => element.replaceWith(make("span", { textContent: data.images.key[image], title: text }));
    element.src = address;
    element.dataset.image = image;
    return element;
  }

  // Rows of objects as a table; `columns` is [heading, cell of a row] each, the first of them the row's heading.
  // With `sort`, a heading sorts by the third of its column, the number or text behind a cell.
  function table(caption, columns, rows, sort = false) {
    const heading = ([text, , value], i) => {
      if (!sort || !value) return make("th", { textContent: text, scope: "col" });
      const button = make("button", { type: "button", className: "link", textContent: text });
      const cell = make("th", { scope: "col" }, button);
      button.onclick = () => {
        const up = cell.ariaSort !== "ascending";
        head.querySelectorAll("th").forEach((other) => { other.ariaSort = null; });
        cell.ariaSort = up ? "ascending" : "descending";
        const order = rows.map((row, at) => [value(row), body[at]]);
        order.sort(([a], [b]) => (up ? 1 : -1) * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
        body[0]?.parentNode.append(...order.map(([, line]) => line));
      };
      return cell;
    };
    const head = make("tr", {}, ...columns.map(heading));
    const cell = (row) => ([, show], i) => {
      const shown = show(row);
      const made = make(i ? "td" : "th", i ? {} : { scope: "row" }, ...(Array.isArray(shown) ? shown : [shown]));
      made.dataset.heading = columns[i][0];
      return made;
    };
    const body = rows.map((row) => make("tr", { className: row.kind || "" }, ...columns.map(cell(row))));
    return make("table", {}, make("caption", { textContent: caption }), make("thead", {}, head), make("tbody", {}, ...body));
  }

  const SCORES = { acc: "ACC", nmi: "NMI", ami: "AMI", ari: "ARI", purity: "purity", used_clusters: "clusters used", smallest_cluster: "smallest", largest_cluster: "largest" };
  function scores(part) {
    const share = (name) => ["acc", "nmi", "ami", "ari", "purity"].includes(name);
    const columns = Object.keys(SCORES).filter((name) => part.rows.some((row) => name in row))
      .map((name) => [SCORES[name], (row) => (!(name in row) ? "" : share(name) ? (100 * row[name]).toFixed(1) : count(row[name]))]);
    return table(`${part.name}, ${counted(part.images, "image")}`, [["method", (row) => row.method], ...columns], part.rows);
  }

  // The clusters of the coarsest trial, and below each those of the next finer that lie in it mostly.
  // `action` makes what follows the facts of a node, e.g. a button.
  function joining({ levels, top, together, settings }, action = () => []) {
    const numbers = levels.map((level) => level.clusters);
    const apart = Object.entries(settings).map(([name, value]) => `${name} = ${value}`).join(", ");
    const lead = `${apart ? `${apart}: ` : ""}${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)} clusters of the same images. `
      + `Each cluster stands below the coarser one that holds most of its images; ${percent(together, 1)} of all images go along with theirs.`;
    const node = (cluster) => {
      const facts = `of ${levels[cluster.level].clusters}, ${counted(cluster.images, "image")}`
        + (cluster.share == null ? "" : cluster.share === 1 ? ", all inside" : `, ${percent(cluster.share)} of them inside`);
      const pictures = make("ul", { className: "strip" }, ...cluster.typical.map((i) => make("li", {}, picture(i, data.images.key[i]))));
      const line = [make("b", { textContent: cluster.name }), make("span", { textContent: facts }), ...action(cluster)];
      if (!cluster.parts.length) return make("li", {}, make("div", { className: "node" }, ...line, pictures));
      const parts = make("ul", {}, ...cluster.parts.map(node));
      const text = make("span", { className: "more", textContent: `${cluster.parts.length} finer` });
      return make("li", {}, make("details", {}, make("summary", { className: "node" }, ...line, text, pictures), parts));
    };
    const tree = make("ul", { className: "joining" }, ...top.map(node));
    const all = (open) => tree.querySelectorAll("details").forEach((details) => { details.open = open; });
    const button = (text, open) => make("button", { type: "button", textContent: text, onclick: () => all(open) });
    return make("div", {}, make("p", { className: "lead", textContent: lead }),
      make("div", { className: "bar" }, button("Open all", true), button("Close all", false)), tree);
  }

  return { data, byId, percent, count, counted, make, source, picture, pixelated, served, table, scores, joining };
})();
