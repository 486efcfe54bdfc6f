"use strict";
// The map: every image a point, the chosen clusters colored; names and pictures as labels; a lasso.
const map = (() => {
  const { byId, make, counted, source, pixelated, percent } = shared;
  const { images } = store;
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f5fc7"];
  const LABELS = 40, PICTURE = 36, CELLS = 96, NEAR = 12;
  const canvas = byId("canvas"), tip = byId("tip");
  const chosen = new Map();  // cluster -> its color, which it keeps
  let zoom = 1, center = [0, 0], lasso = null, drag = null, waiting = false, cells = null;
  const pictures = new Map();

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const across = () => (canvas.clientWidth / 2.1) * zoom;  // the map fills its place: only what is near counts
  const along = () => (canvas.clientHeight / 2.1) * zoom;
  const toPixel = (x, y) => [canvas.clientWidth / 2 + (x - center[0]) * across(), canvas.clientHeight / 2 - (y - center[1]) * along()];
  const toPlane = (px, py) => [center[0] + (px - canvas.clientWidth / 2) / across(), center[1] - (py - canvas.clientHeight / 2) / along()];

  function redraw() {
    if (waiting || canvas.closest("section").hidden) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  let frame = null;  // pixels of the points, written by hand: 50,000 rectangles take a canvas ten times as long
  function draw() {
    const ratio = devicePixelRatio || 1, pen = canvas.getContext("2d");
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; frame = null; }
    frame ??= pen.createImageData(width, height);
    const pixels = new Uint32Array(frame.data.buffer).fill(0);
    const size = ratio * Math.max(1.5, Math.min(6, (store.count > 20000 ? 1.6 : store.count > 4000 ? 2.5 : 4) * Math.sqrt(zoom)));
    points(pixels, size, css("--point"), (i) => !chosen.has(store.state.cluster[i]));
    chosen.forEach((paint, cluster) => points(pixels, size * 1.3, paint, (i) => store.state.cluster[i] === cluster));
    if (gallery.selected.size) points(pixels, size * 1.6, css("--accent"), (i) => gallery.selected.has(i));
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.putImageData(frame, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    labels(pen);
    if (lasso) outline(pen);
  }

  // A square of `paint`, #rrggbb, for each of the wanted images.
  function points(pixels, size, paint, wanted) {
    const [width, height] = [canvas.width, canvas.height], side = Math.max(1, Math.round(size));
    const [red, green, blue] = paint.match(/\w\w/g).map((two) => parseInt(two, 16));
    const value = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    const sx = (across() * width) / canvas.clientWidth, sy = (along() * height) / canvas.clientHeight;
    const ox = width / 2 - center[0] * sx - side / 2, oy = height / 2 + center[1] * sy - side / 2;
    for (let i = 0; i < store.count; i += 1) {
      const x = Math.round(ox + images.x[i] * sx), y = Math.round(oy - images.y[i] * sy);
      if (x <= -side || y <= -side || x >= width || y >= height || !wanted(i)) continue;
      const left = Math.max(0, x), right = Math.min(width, x + side), bottom = Math.min(height, y + side);
      for (let row = Math.max(0, y); row < bottom; row += 1) for (let at = row * width + left; at < row * width + right; at += 1) pixels[at] = value;
    }
  }

  // Names and a typical picture of the largest clusters in sight, where there is room.
  function labels(pen) {
    const taken = [];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const order = [...chosen.keys(), ...middles().filter(({ cluster }) => !chosen.has(cluster)).map(({ cluster }) => cluster)];
    for (const cluster of order) {
      if (taken.length >= LABELS) break;
      const middle = middles().find((found) => found.cluster === cluster);
      if (!middle) continue;
      const [x, y] = toPixel(middle.x, middle.y);
      const name = store.name(cluster).slice(0, 24), wide = pen.measureText(name).width;
      const box = { x: x - PICTURE / 2, y: y - PICTURE / 2, w: PICTURE + wide + 8, h: PICTURE };
      if (box.x < 0 || box.y < 0 || box.x + box.w > canvas.clientWidth || box.y + box.h > canvas.clientHeight) continue;
      if (taken.some((other) => box.x < other.x + other.w && other.x < box.x + box.w && box.y < other.y + other.h && other.y < box.y + box.h)) continue;
      taken.push(box);
      const shown = loaded(middle.image);
      if (shown) pen.drawImage(shown, box.x, box.y, PICTURE, PICTURE);
      pen.strokeStyle = chosen.get(cluster) ?? css("--line");
      pen.lineWidth = chosen.has(cluster) ? 3 : 1;
      pen.strokeRect(box.x, box.y, PICTURE, PICTURE);
      pen.lineWidth = 3;
      pen.strokeStyle = css("--card");
      pen.strokeText(name, box.x + PICTURE + 5, y);
      pen.fillStyle = css("--ink");
      pen.fillText(name, box.x + PICTURE + 5, y);
    }
  }

  let kept = null;
  function middles() {
    const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
    kept ??= store.clusters().filter((cluster) => store.members(cluster).length)
      .sort((a, b) => store.size(b) - store.size(a)).slice(0, 200).map((cluster) => {
        const members = store.members(cluster);
        const image = members.reduce((best, i) => (images.typical[i] > images.typical[best] ? i : best));
        return { cluster, image, x: median(members.map((i) => images.x[i])), y: median(members.map((i) => images.y[i])) };
      });
    return kept;
  }

  function loaded(image) {
    const address = source(image);
    if (!address) return null;
    if (!pictures.has(image)) {
      const element = new Image();
      element.onload = redraw;
      element.src = address;
      pictures.set(image, element);
    }
    const element = pictures.get(image);
    return element.complete && element.naturalWidth ? element : null;
  }

  function outline(pen) {
    pen.beginPath();
    lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.lineWidth = 2;
    pen.strokeStyle = css("--accent");
    pen.stroke();
    pen.globalAlpha = 0.12;
    pen.fillStyle = css("--accent");
    pen.fill();
    pen.globalAlpha = 1;
  }

  function inside(px, py, path) {
    let within = false;
    for (let i = 0, j = path.length - 1; i < path.length; j = i, i += 1) {
      const [[xi, yi], [xj, yj]] = [path[i], path[j]];
      if (yi > py !== yj > py && px < ((xj - xi) * (py - yi)) / (yj - yi) + xi) within = !within;
    }
    return within;
  }

  function take(path) {
    const found = [];
    for (let i = 0; i < store.count; i += 1) {
      const [px, py] = toPixel(images.x[i], images.y[i]);
      if (store.state.cluster[i] !== store.REMOVED && inside(px, py, path)) found.push(i);
    }
    gallery.select([...gallery.selected], false);
    gallery.select(found);
    gallery.said(`${counted(found.length, "image")} in the lasso`);
    byId("lassoed").hidden = !found.length;
    gallery.grid(byId("lassoed-images"), store.single(found));
  }

  const cellOf = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor(((value + 1) / 2) * CELLS)));
  function nearest(px, py) {
    if (!cells) {
      cells = Array.from({ length: CELLS * CELLS }, () => []);
      for (let i = 0; i < store.count; i += 1) cells[cellOf(images.x[i]) * CELLS + cellOf(images.y[i])].push(i);
    }
    const [x, y] = toPlane(px, py), [sx, sy] = [across(), along()];
    let best = -1, least = NEAR * NEAR;
    for (let cx = cellOf(x - NEAR / sx); cx <= cellOf(x + NEAR / sx); cx += 1) {
      for (let cy = cellOf(y - NEAR / sy); cy <= cellOf(y + NEAR / sy); cy += 1) {
        for (const i of cells[cx * CELLS + cy]) {
          const distance = ((images.x[i] - x) * sx) ** 2 + ((images.y[i] - y) * sy) ** 2;
          if (distance < least) { least = distance; best = i; }
        }
      }
    }
    return best;
  }

  function point(event) {
    const image = nearest(event.offsetX, event.offsetY);
    tip.hidden = image < 0;
    if (image < 0) return;
    const [heading, key, confidence] = tip.querySelectorAll("b, span");
    heading.textContent = store.name(store.state.cluster[image]);
    key.textContent = images.key[image];
    confidence.textContent = store.state.cluster[image] === store.REMOVED ? "" : `confidence ${percent(store.confidence(image))}`;
    const shown = tip.querySelector("img"), address = source(image);
    shown.hidden = !address;
    shown.onload = () => pixelated(shown);
    if (address) shown.src = address;
    tip.dataset.image = image;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - box.height - 8))}px`;
  }

  function zoomBy(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
    const [x, y] = toPlane(px, py);
    zoom = Math.max(0.7, Math.min(200, zoom * factor));
    const [nx, ny] = toPlane(px, py);
    center = [center[0] + x - nx, center[1] + y - ny];
    redraw();
  }

  const lassoing = () => byId("lasso").ariaPressed === "true";
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (lassoing() || event.shiftKey) lasso = [[event.offsetX, event.offsetY]];
    else drag = { x: event.offsetX, y: event.offsetY, moved: false };
    tip.hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (lasso) { lasso.push([event.offsetX, event.offsetY]); redraw(); }
    else if (drag) {
      const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      center = [center[0] - dx / across(), center[1] + dy / along()];
      drag = { x: event.offsetX, y: event.offsetY, moved: true };
      redraw();
    } else point(event);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (lasso) { const path = lasso; lasso = null; if (path.length > 2) take(path); }
    else if (drag && !drag.moved) {
      const image = nearest(event.offsetX, event.offsetY);
      if (image >= 0) gallery.view(image, store.single(store.sorted(store.members(store.state.cluster[image]), "typical")));
    }
    drag = null;
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.2 / zoom;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) center = [center[0] + moves[event.key][0], center[1] + moves[event.key][1]];
    else if (event.key === "+" || event.key === "=") zoomBy(1.4);
    else if (event.key === "-") zoomBy(1 / 1.4);
    else return;
    event.preventDefault();
    redraw();
  });
  byId("zoom-in").onclick = () => zoomBy(1.6);
  byId("zoom-out").onclick = () => zoomBy(1 / 1.6);
  byId("whole").onclick = () => { zoom = 1; center = [0, 0]; redraw(); };
  byId("lasso").onclick = () => { byId("lasso").ariaPressed = String(!lassoing()); canvas.classList.toggle("lassoing", lassoing()); };

  function choose(cluster) {
    const used = [...chosen.values()];
    if (!chosen.has(cluster)) chosen.set(cluster, COLORS.find((color) => !used.includes(color)) ?? COLORS[chosen.size % COLORS.length]);
    chips();
  }

  function chips() {
    byId("chosen").replaceChildren(...[...chosen].map(([cluster, color]) => {
      const chip = make("button", { type: "button", className: "chip", title: "Take the color away", textContent: `${store.name(cluster)} ×` });
      chip.style.borderColor = color;
      chip.onclick = () => { chosen.delete(cluster); chips(); byId("single").focus(); };
      return chip;
    }));
    redraw();
  }

  function list() {
    byId("single").replaceChildren(make("option", { value: "", textContent: "a cluster" }), ...store.clusters().map((cluster) => make("option", { value: cluster, textContent: store.name(cluster) })));
  }
  byId("single").onchange = (event) => { if (event.target.value) choose(Number(event.target.value)); event.target.value = ""; };
  list();
  (window.requestIdleCallback ?? setTimeout)(middles);  // before the map is first drawn
  store.onChange(() => { kept = null; list(); chips(); });
  document.addEventListener("selection", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(canvas);
  return { redraw, choose, place: (image) => toPixel(images.x[image], images.y[image]), chosen };
})();
