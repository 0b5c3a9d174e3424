"use strict";
// Names are data. They are added to the page only as text nodes and attributes, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const lastStep = data.positions.length - 1;

  function addElement(parent, tag, className = "", text = "") {
    const added = document.createElement(tag);
    if (className) added.className = className;
    if (text) added.textContent = text;
    parent.append(added);
    return added;
  }

  function addSvg(parent, tag, attributes = {}) {
    const added = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) added.setAttribute(name, value);
    parent.append(added);
    return added;
  }

  // Python writes numbers in little-endian byte order.
  function decodeBase64(text, size, read) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / size }, (_, k) => view[read](k * size, true));
  }
  const decodeFloats = (text) => decodeBase64(text, 4, "getFloat32");
  const decodeIntegers = (text) => decodeBase64(text, 2, "getUint16");

  function formatValue(value) {
    if (value >= 999.5) return Math.round(value).toLocaleString("en-US");
    if (value === 0) return "0";
    if (value < 0.00095) return value.toExponential(1).replace("-", "\u2212");
    return value < 0.01 ? value.toPrecision(2) : value < 1 ? value.toFixed(3) : value.toPrecision(3);
  }
  const formatSigned = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);

  // --- The map ---------------------------------------------------------------------------------------------------

  const box = byId("map");
  const canvas = box.querySelector("canvas");
  const svg = box.querySelector("svg");
  const cells = {
    x: decodeIntegers(data.map.x),
    y: decodeIntegers(data.map.y),
    color: data.map.color === null ? null : decodeIntegers(data.map.color),
  };
  let stepPositions = []; // in pixels
  let marker = null;
  let circles = null; // around the cells nearest to the step

  byId("map-title").textContent = data.map.title;
  byId("map-description").textContent = data.map.description;

  const colorOf = (c) => data.map.palette[cells.color === null ? 0 : cells.color[c]];

  function drawMap() {
    const width = box.clientWidth;
    const height = box.clientHeight;
    const margin = 22;
    // A circle is drawn with equal axes; other maps fill the box.
    const innerWidth = (data.map.isCircle ? Math.min(width, height) : width) - 2 * margin;
    const innerHeight = (data.map.isCircle ? Math.min(width, height) : height) - 2 * margin;
    const toX = (share) => (width - innerWidth) / 2 + share * innerWidth;
    const toY = (share) => (height + innerHeight) / 2 - share * innerHeight;
    drawCells(width, height, toX, toY);
    stepPositions = data.map.path.map(([x, y]) => [toX(x), toY(y)]);
    svg.replaceChildren();
    circles = addSvg(svg, "g", { id: "nearest" });
    drawPath(width, height);
    drawMarker();
  }

  function drawCells(width, height, toX, toY) {
    cells.positions = cells.x.map((x, c) => [toX(x / 65535), toY(cells.y[c] / 65535)]);
    const pixelRatio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * pixelRatio);
    canvas.height = Math.round(height * pixelRatio);
    const context = canvas.getContext("2d");
    context.scale(pixelRatio, pixelRatio);
    context.globalAlpha = cells.color === null ? 1 : 0.7;
    cells.radius = Math.min(3, Math.max(0.8, 70 / Math.sqrt(cells.x.length)));
    for (let c = 0; c < cells.x.length; c++) {
      context.fillStyle = colorOf(c);
      context.beginPath();
      context.arc(...cells.positions[c], cells.radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  function drawPath(width, height) {
    const line = "M" + stepPositions.map((position) => position.join(" ")).join("L");
    const style = { fill: "none", "stroke-linecap": "round", "stroke-linejoin": "round" };
    const path = addSvg(svg, "g", { opacity: data.map.unreliable ? 0.3 : 1 });
    addSvg(path, "path", { ...style, d: line, stroke: "#fff", "stroke-width": 7 });
    for (let s = 0; s < lastStep; s++) {
      const segment = "M" + stepPositions[s].join(" ") + "L" + stepPositions[s + 1].join(" ");
      addSvg(path, "path", { ...style, d: segment, stroke: data.map.lineColors[s], "stroke-width": 3.5 });
    }
    for (const [x, y] of stepPositions) addSvg(path, "circle", { cx: x, cy: y, r: 2.6, fill: "#000" });
    drawArrows(path);
    const center = [0, 1].map((d) => stepPositions.reduce((sum, position) => sum + position[d], 0) / (lastStep + 1));
    const marked = data.map.labels.filter((label) => label.mark).map((label) => stepPositions[label.step]);
    for (const [cx, cy] of marked) {
      addSvg(svg, "circle", { cx, cy, r: 5, fill: "#fff", stroke: "#000", "stroke-width": 2 });
    }
    const occupied = marked.map(([x, y]) => ({ x: x - 7, y: y - 7, width: 14, height: 14 }));
    for (const label of data.map.labels) {
      drawLabel(label.text, ...stepPositions[label.step], center, width, height, occupied);
    }
    if (!data.map.isCircle) {
      addSvg(svg, "text", { class: "axis", x: 8, y: height - 7 }).textContent = data.map.label + " 1 \u2192";
      const vertical = addSvg(svg, "text", { class: "axis", transform: `translate(15 ${height - 26}) rotate(-90)` });
      vertical.textContent = data.map.label + " 2 \u2192";
    }
    addSvg(svg, "path", { class: "click-area", d: line });
  }

  // Try label positions in turn: away from the center of the path, then above, below, right and left of the step.
  function drawLabel(text, x, y, center, width, height, occupied) {
    const label = addSvg(svg, "text", { x: 0, y: 0 });
    label.textContent = text;
    const size = label.getBBox();
    const outward = [x - center[0], y - center[1]];
    const length = Math.hypot(...outward) || 1;
    const [dx, dy] = [16 + size.width / 2, 10 + size.height / 2];
    const offsets = [[(outward[0] / length) * dx, (outward[1] / length) * 18], [0, -dy], [0, dy], [dx, 0], [-dx, 0]];
    const boxes = offsets.map(([right, down]) => ({
      // Inside the map, and not over the axis names at the left and at the bottom.
      x: Math.max(22, Math.min(width - size.width - 4, x + right - size.width / 2)),
      y: Math.max(2, Math.min(height - size.height - 24, y + down - size.height / 2)),
      width: size.width,
      height: size.height,
    }));
    const free = boxes.find((candidate) => !occupied.some((other) => overlap(candidate, other))) || boxes[0];
    label.setAttribute("x", free.x - size.x);
    label.setAttribute("y", free.y - size.y);
    occupied.push(free);
  }

  const overlap = (a, b) =>
    a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

  // Arrows are at equal distances along the line on the map.
  function drawArrows(path) {
    const length = [0]; // of the path up to each step
    for (let s = 1; s <= lastStep; s++) {
      const [from, to] = [stepPositions[s - 1], stepPositions[s]];
      length.push(length[s - 1] + Math.hypot(to[0] - from[0], to[1] - from[1]));
    }
    const total = length[lastStep];
    if (total < 60) return;
    for (const share of data.periodic ? [1 / 6, 1 / 2, 5 / 6] : [0.3, 0.7]) {
      const s = Math.max(1, length.findIndex((distance) => distance >= share * total));
      const fraction = (share * total - length[s - 1]) / (length[s] - length[s - 1] || 1);
      const [from, to] = [stepPositions[s - 1], stepPositions[s]];
      const [x, y] = [0, 1].map((d) => from[d] + fraction * (to[d] - from[d]));
      const angle = (Math.atan2(to[1] - from[1], to[0] - from[0]) * 180) / Math.PI;
      const attributes = { d: "M-6 -7L8 0L-6 7Z", fill: "#000", stroke: "#fff", "stroke-width": 1.5 };
      addSvg(path, "path", { ...attributes, transform: `translate(${x} ${y}) rotate(${angle})` });
    }
  }

  function drawMarker() {
    marker = addSvg(svg, "g", { id: "marker" });
    addSvg(marker, "circle", { r: 13, fill: "#fff" });
    addSvg(marker, "circle", { class: "inner", r: 9.5, stroke: "#000", "stroke-width": 3.5 });
    moveMarker(Number(slider.value));
  }

  function moveMarker(step) {
    if (marker === null) return;
    marker.setAttribute("transform", `translate(${stepPositions[step].join(" ")})`);
    circles.replaceChildren();
    for (const c of data.map.nearest[step]) {
      const [cx, cy] = cells.positions[c];
      addSvg(circles, "circle", { cx, cy, r: cells.radius + 3 });
      addSvg(circles, "circle", { cx, cy, r: cells.radius + 1, fill: colorOf(c), stroke: "#fff", "stroke-width": 1.2 });
    }
    marker.querySelector(".inner").setAttribute("fill", data.map.markerColors[step]);
  }

  // Clicking near the path or dragging with a mouse selects a step. Dragging with a finger scrolls the page.
  function selectOnMap(event) {
    const corner = svg.getBoundingClientRect();
    const [clickX, clickY] = [event.clientX - corner.left, event.clientY - corner.top];
    const distances = stepPositions.map(([x, y]) => Math.hypot(clickX - x, clickY - y));
    const nearest = distances.indexOf(Math.min(...distances));
    if (distances[nearest] > (event.type === "pointermove" ? 80 : 30)) return;
    stop();
    show(nearest);
  }
  svg.addEventListener("click", selectOnMap);
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons === 1) selectOnMap(event);
  });

  function drawLegend() {
    const container = byId("legend");
    const legend = data.map.legend;
    if (legend !== null) addElement(container, "div", "", "Color: " + legend.title);
    if (legend !== null && legend.entries) {
      const list = addElement(container, "ul");
      for (const [name, color] of legend.entries) {
        const entry = addElement(list, "li");
        addElement(entry, "i").style.background = color;
        entry.append(name);
      }
      if (legend.more) addElement(list, "li", "", legend.more);
    } else if (legend !== null) {
      const bar = addElement(container, "div", "bar");
      addElement(bar, "span", "", legend.low);
      addElement(bar, "i").style.background = `linear-gradient(to right, ${data.map.palette.slice(1).join(",")})`;
      addElement(bar, "span", "", legend.high);
    }
    if (data.map.caption) addElement(container, "div", "caption", data.map.caption);
  }

  // --- The features ----------------------------------------------------------------------------------------------

  const names = ["mean", "lower", "upper", "change"];
  const values = Object.fromEntries(names.map((name) => [name, decodeFloats(data[name])]));
  const nFeatures = data.modalities.reduce((sum, modality) => sum + modality.features.length, 0);
  const valueAt = (name, step, f) => values[name][step * nFeatures + f];
  const rows = [];

  function drawFeatures() {
    const longest = Math.max(...data.modalities.flatMap(({ features }) => features.map(({ name }) => name.length)));
    byId("features").style.setProperty("--name", `${Math.min(11, Math.max(5, 0.8 * longest))}rem`);
    for (const modality of data.modalities) {
      const section = addElement(byId("features"), "section");
      const title = addElement(section, "h2", "", modality.title + " ");
      addElement(title, "span", "unit", modality.unit);
      const table = addElement(section, "table");
      table.setAttribute("role", "table");
      table.setAttribute("aria-label", `${modality.title}, ${modality.unit}`);
      const head = addElement(table, "thead");
      head.setAttribute("role", "rowgroup");
      const headings = addElement(head, "tr");
      headings.setAttribute("role", "row");
      for (const [className, text] of [
        ["name", modality.noun],
        ["bar", "expected (own scale)"],
        ["value", `value (${data.interval} interval)`],
        ["change", data.changeHeading],
        ["curve", data.curveHeading],
        ["lfsr", "lfsr"],
      ]) {
        const heading = addElement(headings, "th", className, text);
        heading.setAttribute("role", "columnheader");
        if (className === "lfsr") heading.title = "local false sign rate";
        if (className === "bar" || className === "curve") heading.setAttribute("aria-hidden", "true");
      }
      const body = addElement(table, "tbody");
      body.setAttribute("role", "rowgroup");
      for (const feature of modality.features) rows.push(drawRow(body, modality, feature, rows.length));
    }
  }

  function drawRow(body, modality, feature, f) {
    const row = addElement(body, "tr", feature.certain ? "" : "uncertain");
    row.setAttribute("role", "row");
    let highest = 0;
    for (let s = 0; s <= lastStep; s++) highest = Math.max(highest, valueAt("upper", s, f), valueAt("mean", s, f));
    highest = highest || 1;
    const name = addElement(row, "th", "name", feature.name);
    name.classList.toggle("italic", modality.italic);
    name.classList.toggle("long", feature.name.length > 14);
    name.setAttribute("role", "rowheader");
    name.scope = "row";
    name.title = feature.name;
    const addCell = (className) => {
      const cell = addElement(row, "td", className);
      cell.setAttribute("role", "cell");
      return cell;
    };
    const bar = addCell("bar");
    bar.setAttribute("aria-hidden", "true");
    const track = addElement(bar, "span", "track");
    const fill = addElement(track, "span", "fill");
    fill.style.background = fill.style.borderColor = modality.color;
    addElement(track, "span", "reference").style.left = `${Math.min(100, (100 * feature.reference) / highest)}%`;
    const whisker = addElement(track, "span", "whisker");
    const value = addCell("value");
    const mean = addElement(value, "b");
    value.append(" ");
    const interval = addElement(value, "small");
    const change = addCell("change");
    const curve = addCell("curve");
    curve.setAttribute("aria-hidden", "true");
    const cursor = drawCurve(curve, modality.color, f, highest);
    addCell("lfsr").textContent = feature.lfsr;
    return { highest, fill, whisker, mean, interval, change, cursor };
  }

  // A small curve of the whole path, with a line at the current step.
  function drawCurve(parent, color, f, highest) {
    const plot = addSvg(parent, "svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none" });
    const point = (name, s) => `${(100 * s) / lastStep} ${23 - (22 * valueAt(name, s, f)) / highest}`;
    const steps = data.positions.map((_, s) => s);
    const lower = steps.map((s) => point("lower", s));
    const upper = steps.map((s) => point("upper", s)).reverse();
    addSvg(plot, "path", { d: `M0 23.5H100`, stroke: "#bbb", "stroke-width": 1, "vector-effect": "non-scaling-stroke" });
    addSvg(plot, "path", { d: "M" + [...lower, ...upper].join("L") + "Z", fill: color, "fill-opacity": 0.25 });
    const line = { fill: "none", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
    addSvg(plot, "path", { ...line, d: "M" + steps.map((s) => point("mean", s)).join("L"), stroke: color });
    return addSvg(plot, "path", { ...line, d: "M0 0V24", stroke: "#000" });
  }

  function updateRow(row, step, f) {
    const percent = (value) => (100 * value) / row.highest;
    const [mean, lower, upper] = ["mean", "lower", "upper"].map((name) => valueAt(name, step, f));
    row.fill.style.width = `${percent(mean)}%`;
    row.whisker.style.left = `${percent(lower)}%`;
    row.whisker.style.width = `${percent(upper - lower)}%`;
    row.mean.textContent = formatValue(mean);
    row.interval.textContent = `${formatValue(lower)}\u2013${formatValue(upper)}`;
    const change = valueAt("change", step, f);
    row.change.textContent = formatSigned(change) + (change > 0.005 ? " \u25b2" : change < -0.005 ? " \u25bc" : " \u2007");
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

  // Return the step within the path. On a circle, the last step equals the first, so the second one follows it.
  function wrapStep(step) {
    if (!data.periodic) return Math.max(0, Math.min(lastStep, step));
    return step > lastStep ? step - lastStep : step < 0 ? step + lastStep : step;
  }

  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  slider.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.round(lastStep / 8));
    const changes = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page };
    const change = changes[event.key];
    if (change === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    stop();
    show(wrapStep(Number(slider.value) + change));
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
    const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!data.periodic && Number(slider.value) === lastStep) show(0);
    play.textContent = "Stop";
    byId("announced").textContent = "";
    timer = setInterval(
      () => {
        show(wrapStep(Number(slider.value) + 1));
        if (!data.periodic && Number(slider.value) === lastStep) stop();
      },
      reducedMotion ? 1000 : Math.min(400, Math.max(60, 9000 / lastStep)),
    );
  });

  function drawScale() {
    const strip = byId("strip");
    if (data.phases !== null) {
      strip.hidden = false;
      for (const [phase, from, to] of data.phases.intervals) {
        const section = addElement(strip, "span", "", to - from > 0.06 ? data.phases.names[phase] : "");
        section.style.left = `${100 * from}%`;
        section.style.width = `${100 * (to - from)}%`;
        section.style.background = data.phases.colors[phase];
      }
    }
    for (const [share, text] of data.ticks) addElement(byId("ticks"), "span", "", text).style.left = `${100 * share}%`;
  }

  function drawNotes() {
    for (const [term, text] of data.notes) {
      addElement(byId("notes"), "dt", "", term);
      addElement(byId("notes"), "dd", "", text);
    }
  }

  drawLegend();
  drawScale();
  drawFeatures();
  drawNotes();
  show(0);
  new ResizeObserver(drawMap).observe(box);
})();
