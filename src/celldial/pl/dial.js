"use strict";
// All names are data: they reach the page as text nodes and attributes alone, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const lastStep = data.positions.length - 1;

  function element(parent, tag, className = "", text = "") {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }

  function drawing(parent, tag, attributes = {}) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    parent.append(made);
    return made;
  }

  // Little-endian, as Python wrote them.
  function numbers(text, size, read) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / size }, (_, k) => view[read](k * size, true));
  }
  const floats = (text) => numbers(text, 4, "getFloat32");
  const shorts = (text) => numbers(text, 2, "getUint16");

  function written(value) {
    if (value >= 999.5) return Math.round(value).toLocaleString("en-US");
    if (value === 0) return "0";
    if (value < 0.00095) return value.toExponential(1).replace("-", "\u2212");
    return value < 0.01 ? value.toPrecision(2) : value < 1 ? value.toFixed(3) : value.toPrecision(3);
  }
  const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);

  // --- The map ---------------------------------------------------------------------------------------------------

  const box = byId("map");
  const canvas = box.querySelector("canvas");
  const svg = box.querySelector("svg");
  const cells = {
    x: shorts(data.map.x),
    y: shorts(data.map.y),
    color: data.map.color === null ? null : shorts(data.map.color),
  };
  let places = []; // of the steps, in pixels
  let marker = null;
  let near = null; // the cells nearest to the step

  byId("map-title").textContent = data.map.title;
  byId("map-description").textContent = data.map.description;

  const colorOf = (c) => data.map.palette[cells.color === null ? 0 : cells.color[c]];

  function drawMap() {
    const width = box.clientWidth;
    const height = box.clientHeight;
    const margin = 22;
    // A circle has to be round; other maps fill the box.
    const across = (data.map.isCircle ? Math.min(width, height) : width) - 2 * margin;
    const toX = (share) => (width - across) / 2 + share * across;
    const down = (data.map.isCircle ? Math.min(width, height) : height) - 2 * margin;
    const toY = (share) => (height + down) / 2 - share * down;
    drawCells(width, height, toX, toY);
    places = data.map.path.map(([x, y]) => [toX(x), toY(y)]);
    svg.replaceChildren();
    near = drawing(svg, "g", { id: "near" });
    drawPath(width, height);
    drawMarker();
  }

  function drawCells(width, height, toX, toY) {
    cells.places = cells.x.map((x, c) => [toX(x / 65535), toY(cells.y[c] / 65535)]);
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    pen.globalAlpha = cells.color === null ? 1 : 0.7;
    cells.radius = Math.min(3, Math.max(0.8, 70 / Math.sqrt(cells.x.length)));
    for (let c = 0; c < cells.x.length; c++) {
      pen.fillStyle = colorOf(c);
      pen.beginPath();
      pen.arc(...cells.places[c], cells.radius, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  function drawPath(width, height) {
    const line = "M" + places.map((place) => place.join(" ")).join("L");
    const round = { fill: "none", "stroke-linecap": "round", "stroke-linejoin": "round" };
    const way = drawing(svg, "g", { opacity: data.map.mixed ? 0.3 : 1 });
    drawing(way, "path", { ...round, d: line, stroke: "#fff", "stroke-width": 7 });
    for (let s = 0; s < lastStep; s++) {
      const piece = "M" + places[s].join(" ") + "L" + places[s + 1].join(" ");
      drawing(way, "path", { ...round, d: piece, stroke: data.map.lineColors[s], "stroke-width": 3.5 });
    }
    for (const [x, y] of places) drawing(way, "circle", { cx: x, cy: y, r: 2.6, fill: "#000" });
    drawArrows(way);
    const middle = [0, 1].map((d) => places.reduce((sum, place) => sum + place[d], 0) / places.length);
    const marked = data.map.labels.filter((label) => label.mark).map((label) => places[label.step]);
    for (const [cx, cy] of marked) {
      drawing(svg, "circle", { cx, cy, r: 5, fill: "#fff", stroke: "#000", "stroke-width": 2 });
    }
    const taken = marked.map(([x, y]) => ({ x: x - 7, y: y - 7, width: 14, height: 14 }));
    for (const label of data.map.labels) {
      drawLabel(label.text, ...places[label.step], middle, width, height, taken);
    }
    if (!data.map.isCircle) {
      drawing(svg, "text", { class: "axis", x: 8, y: height - 7 }).textContent = data.map.label + " 1 \u2192";
      const side = drawing(svg, "text", { class: "axis", transform: `translate(15 ${height - 26}) rotate(-90)` });
      side.textContent = data.map.label + " 2 \u2192";
    }
    drawing(svg, "path", { class: "reach", d: line });
  }

  // Outward from the middle of the path, or beside the step: the first place that is free, inside the map.
  function drawLabel(text, x, y, middle, width, height, taken) {
    const drawn = drawing(svg, "text", { x: 0, y: 0 });
    drawn.textContent = text;
    const size = drawn.getBBox();
    const away = [x - middle[0], y - middle[1]];
    const length = Math.hypot(...away) || 1;
    const [besides, above] = [16 + size.width / 2, 10 + size.height / 2];
    const ways = [[(away[0] / length) * besides, (away[1] / length) * 18], [0, -above], [0, above], [besides, 0], [-besides, 0]];
    const boxes = ways.map(([right, down]) => ({
      // Less the names of the axes, at the left and at the bottom.
      x: Math.max(22, Math.min(width - size.width - 4, x + right - size.width / 2)),
      y: Math.max(2, Math.min(height - size.height - 24, y + down - size.height / 2)),
      width: size.width,
      height: size.height,
    }));
    const place = boxes.find((box) => !taken.some((other) => overlap(box, other))) || boxes[0];
    drawn.setAttribute("x", place.x - size.x);
    drawn.setAttribute("y", place.y - size.y);
    taken.push(place);
  }

  const overlap = (a, b) =>
    a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

  // At equal distances along the line, as it is on the map.
  function drawArrows(way) {
    const length = [0];
    for (let s = 1; s <= lastStep; s++) {
      length.push(length[s - 1] + Math.hypot(places[s][0] - places[s - 1][0], places[s][1] - places[s - 1][1]));
    }
    const total = length[lastStep];
    if (total < 60) return;
    for (const share of data.periodic ? [1 / 6, 1 / 2, 5 / 6] : [0.3, 0.7]) {
      const s = Math.max(1, length.findIndex((far) => far >= share * total));
      const part = (share * total - length[s - 1]) / (length[s] - length[s - 1] || 1);
      const [x, y] = [0, 1].map((d) => places[s - 1][d] + part * (places[s][d] - places[s - 1][d]));
      const turn = (Math.atan2(places[s][1] - places[s - 1][1], places[s][0] - places[s - 1][0]) * 180) / Math.PI;
      const attributes = { d: "M-6 -7L8 0L-6 7Z", fill: "#000", stroke: "#fff", "stroke-width": 1.5 };
      drawing(way, "path", { ...attributes, transform: `translate(${x} ${y}) rotate(${turn})` });
    }
  }

  function drawMarker() {
    marker = drawing(svg, "g", { id: "marker" });
    drawing(marker, "circle", { r: 13, fill: "#fff" });
    drawing(marker, "circle", { class: "inner", r: 9.5, stroke: "#000", "stroke-width": 3.5 });
    moveMarker(Number(slider.value));
  }

  function moveMarker(step) {
    if (marker === null) return;
    marker.setAttribute("transform", `translate(${places[step].join(" ")})`);
    near.replaceChildren();
    for (const c of data.map.near[step]) {
      const [cx, cy] = cells.places[c];
      drawing(near, "circle", { cx, cy, r: cells.radius + 3 });
      drawing(near, "circle", { cx, cy, r: cells.radius + 1, fill: colorOf(c), stroke: "#fff", "stroke-width": 1.2 });
    }
    marker.querySelector(".inner").setAttribute("fill", data.map.markerColors[step]);
  }

  // A click near the path, or dragging with a mouse; a finger scrolls the page.
  function takeFromMap(event) {
    const corner = svg.getBoundingClientRect();
    const away = places.map(([x, y]) => Math.hypot(event.clientX - corner.left - x, event.clientY - corner.top - y));
    const nearest = away.indexOf(Math.min(...away));
    if (away[nearest] > (event.type === "pointermove" ? 80 : 30)) return;
    stop();
    show(nearest);
  }
  svg.addEventListener("click", takeFromMap);
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons === 1) takeFromMap(event);
  });

  function drawLegend() {
    const place = byId("legend");
    const legend = data.map.legend;
    if (legend !== null) element(place, "div", "", "colored by " + legend.title);
    if (legend !== null && legend.entries) {
      const list = element(place, "ul");
      for (const [name, color] of legend.entries) {
        const entry = element(list, "li");
        element(entry, "i").style.background = color;
        entry.append(name);
      }
      if (legend.more) element(list, "li", "", legend.more);
    } else if (legend !== null) {
      const bar = element(place, "div", "bar");
      element(bar, "span", "", legend.low);
      element(bar, "i").style.background = `linear-gradient(to right, ${data.map.palette.slice(1).join(",")})`;
      element(bar, "span", "", legend.high);
    }
    if (data.map.caption) element(place, "div", "caption", data.map.caption);
  }

  // --- The features ----------------------------------------------------------------------------------------------

  const values = { mean: floats(data.mean), lower: floats(data.lower), upper: floats(data.upper), change: floats(data.change) };
  const nFeatures = data.modalities.reduce((sum, modality) => sum + modality.features.length, 0);
  const at = (what, step, f) => values[what][step * nFeatures + f];
  const rows = [];

  function drawFeatures() {
    const longest = Math.max(...data.modalities.flatMap(({ features }) => features.map(({ name }) => name.length)));
    byId("features").style.setProperty("--name", `${Math.min(11, Math.max(5, 0.8 * longest))}rem`);
    for (const modality of data.modalities) {
      const section = element(byId("features"), "section");
      const title = element(section, "h2", "", modality.title + " ");
      element(title, "span", "unit", modality.unit);
      const table = element(section, "table");
      table.setAttribute("role", "table");
      table.setAttribute("aria-label", `${modality.title}, ${modality.unit}`);
      const head = element(table, "thead");
      head.setAttribute("role", "rowgroup");
      const headings = element(head, "tr");
      headings.setAttribute("role", "row");
      for (const [className, text] of [
        ["name", modality.noun],
        ["bar", "expected (own scale)"],
        ["value", `value (${data.interval} interval)`],
        ["change", data.reference.heading],
        ["curve", data.reference.along],
        ["lfsr", "lfsr"],
      ]) {
        const heading = element(headings, "th", className, text);
        heading.setAttribute("role", "columnheader");
        if (className === "lfsr") heading.title = "local false sign rate";
        if (className === "bar" || className === "curve") heading.setAttribute("aria-hidden", "true");
      }
      const body = element(table, "tbody");
      body.setAttribute("role", "rowgroup");
      for (const feature of modality.features) rows.push(drawRow(body, modality, feature, rows.length));
    }
  }

  function drawRow(body, modality, feature, f) {
    const row = element(body, "tr", feature.sure ? "" : "unsure");
    row.setAttribute("role", "row");
    let highest = 0;
    for (let s = 0; s <= lastStep; s++) highest = Math.max(highest, at("upper", s, f), at("mean", s, f));
    highest = highest || 1;
    const name = element(row, "th", "name", feature.name);
    name.classList.toggle("italic", modality.italic);
    name.classList.toggle("long", feature.name.length > 14);
    name.setAttribute("role", "rowheader");
    name.scope = "row";
    name.title = feature.name;
    const cell = (className) => {
      const made = element(row, "td", className);
      made.setAttribute("role", "cell");
      return made;
    };
    const bar = cell("bar");
    bar.setAttribute("aria-hidden", "true");
    const track = element(bar, "span", "track");
    const fill = element(track, "span", "fill");
    fill.style.background = fill.style.borderColor = modality.color;
    element(track, "span", "reference").style.left = `${Math.min(100, (100 * feature.reference) / highest)}%`;
    const whisker = element(track, "span", "whisker");
    const value = cell("value");
    const mean = element(value, "b");
    value.append(" ");
    const interval = element(value, "small");
    const change = cell("change");
    const curve = cell("curve");
    curve.setAttribute("aria-hidden", "true");
    const cursor = drawCurve(curve, modality.color, f, highest);
    cell("lfsr").textContent = feature.lfsr;
    return { highest, fill, whisker, mean, interval, change, cursor };
  }

  // The whole path in small, with a line where the slider is.
  function drawCurve(parent, color, f, highest) {
    const picture = drawing(parent, "svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none" });
    const point = (what, s) => `${(100 * s) / lastStep} ${23 - (22 * at(what, s, f)) / highest}`;
    const steps = data.positions.map((_, s) => s);
    const lower = steps.map((s) => point("lower", s));
    const upper = steps.map((s) => point("upper", s)).reverse();
    drawing(picture, "path", { d: `M0 23.5H100`, stroke: "#bbb", "stroke-width": 1, "vector-effect": "non-scaling-stroke" });
    drawing(picture, "path", { d: "M" + [...lower, ...upper].join("L") + "Z", fill: color, "fill-opacity": 0.25 });
    const line = { fill: "none", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
    drawing(picture, "path", { ...line, d: "M" + steps.map((s) => point("mean", s)).join("L"), stroke: color });
    return drawing(picture, "path", { ...line, d: "M0 0V24", stroke: "#000" });
  }

  function updateRow(row, step, f) {
    const percent = (value) => (100 * value) / row.highest;
    const [mean, lower, upper] = ["mean", "lower", "upper"].map((what) => at(what, step, f));
    row.fill.style.width = `${percent(mean)}%`;
    row.whisker.style.left = `${percent(lower)}%`;
    row.whisker.style.width = `${percent(upper - lower)}%`;
    row.mean.textContent = written(mean);
    row.interval.textContent = `${written(lower)}\u2013${written(upper)}`;
    const change = at("change", step, f);
    row.change.textContent = signed(change) + (change > 0.005 ? " \u25b2" : change < -0.005 ? " \u25bc" : " \u2007");
    row.cursor.setAttribute("transform", `translate(${(100 * step) / lastStep} 0)`);
  }

  // --- The slider ------------------------------------------------------------------------------------------------

  const slider = byId("slider");
  const play = byId("play");
  slider.max = lastStep;
  byId("slider-label").textContent = data.label;
  let timer = null;

  function show(step) {
    slider.value = step;
    byId("position").textContent = data.positions[step];
    const phase = data.phases === null ? null : data.phases.ofStep[step];
    slider.setAttribute(
      "aria-valuetext",
      data.positions[step] + (phase === null ? "" : `, phase ${data.phases.names[phase]}`),
    );
    byId("phase").hidden = phase === null;
    if (phase !== null) {
      byId("phase").textContent = data.phases.names[phase];
      byId("phase").style.background = data.phases.colors[phase];
    }
    moveMarker(step);
    rows.forEach((row, f) => updateRow(row, step, f));
  }

  // The last step of a circle is the first one: after it comes the second.
  function around(step) {
    if (!data.periodic) return Math.max(0, Math.min(lastStep, step));
    return step > lastStep ? step - lastStep : step < 0 ? step + lastStep : step;
  }

  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  slider.addEventListener("keydown", (event) => {
    const far = Math.max(1, Math.round(lastStep / 8));
    const ways = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: far, PageDown: -far };
    const way = ways[event.key];
    if (way === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    stop();
    show(around(Number(slider.value) + way));
  });

  function stop() {
    if (timer === null) return;
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    byId("announced").textContent = slider.getAttribute("aria-valuetext");
  }

  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!data.periodic && Number(slider.value) === lastStep) show(0);
    play.textContent = "Stop";
    byId("announced").textContent = "";
    timer = setInterval(
      () => {
        show(around(Number(slider.value) + 1));
        if (!data.periodic && Number(slider.value) === lastStep) stop();
      },
      calm ? 1000 : Math.min(400, Math.max(60, 9000 / lastStep)),
    );
  });

  function drawScale() {
    const strip = byId("strip");
    if (data.phases !== null) {
      strip.hidden = false;
      for (const [phase, from, to] of data.phases.pieces) {
        const piece = element(strip, "span", "", to - from > 0.06 ? data.phases.names[phase] : "");
        piece.style.left = `${100 * from}%`;
        piece.style.width = `${100 * (to - from)}%`;
        piece.style.background = data.phases.colors[phase];
      }
    }
    for (const [share, text] of data.ticks) element(byId("ticks"), "span", "", text).style.left = `${100 * share}%`;
  }

  function drawNotes() {
    for (const [term, text] of data.notes) {
      element(byId("notes"), "dt", "", term);
      element(byId("notes"), "dd", "", text);
    }
  }

  drawLegend();
  drawScale();
  drawFeatures();
  drawNotes();
  show(0);
  new ResizeObserver(drawMap).observe(box);
})();
