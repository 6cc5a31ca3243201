// Three pictures to play with, in the pages that have a place for them (<div class="play">): one
// weight and its learned inverse (page 00), a spline whose knots can be dragged (page 09), and the
// update's paths for a λ of one's choice (page 22).
(() => {
  const make = (tag, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    parent?.append(node);
    return node;
  };
  const line = (points) => `M${points.map((p) => p.map((v) => v.toFixed(2)).join(",")).join("L")}`;

  /** An SVG of 400 × 300 in a place, with a line of words under it. */
  function stage(place, words) {
    const svg = make("svg", { viewBox: "0 0 400 300", role: "img", "aria-label": words }, null);
    place.append(svg, Object.assign(document.createElement("p"), { textContent: words }));
    return svg;
  }

  /** Call move with the pointer's place in the picture while a node is dragged. */
  function draggable(svg, node, move) {
    node.addEventListener("pointerdown", (event) => { node.setPointerCapture(event.pointerId); event.preventDefault(); });
    node.addEventListener("pointermove", (event) => {
      if (!node.hasPointerCapture(event.pointerId)) return;
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      move(p.x, p.y);
    });
  }

  /** A slider with its name in front, and a line of words after it: {value(), words}. */
  function slider(place, name, range, draw) {
    const label = Object.assign(document.createElement("label"), { textContent: name });
    const input = Object.assign(document.createElement("input"), { type: "range", ...range });
    const words = document.createElement("p");
    label.append(input);
    place.append(label, words);
    input.addEventListener("input", draw);
    return { value: () => Number(input.value), words };
  }

  // One weight w and its learned inverse r, on data of variance 1 (pages 00 and 22).
  const X = (w) => 200 + 150 * (w - 1), Y = (r) => 150 - 150 * (r - 1);

  /** The axes of (w, r), and the curve of exact inverses. */
  function inverses(svg) {
    const curve = Array.from({ length: 60 }, (_, i) => 0.45 + i / 40).filter((w) => 1 / w < 1.98);
    make("path", { d: line(curve.map((w) => [X(w), Y(1 / w)])), class: "faint" }, svg);
    make("text", { x: 330, y: 235, class: "word" }, svg, "r w = 1");
  }

  /** The mean of Eqs. 17 and 20; `exact` has 1/w and 1/r where the learned inverses stand. */
  function gradient(w, r, lam, exact) {
    const pull = -2 * lam * (r * w - 1), [inverse, weight] = exact ? [1 / w, 1 / r] : [r, w];
    return [(inverse - w) / 2 + pull * r, (weight ** 3 - weight) / 2 + pull * w];
  }

  /** The path of (w, r) by small steps along the gradient, as long as it stays in the picture. */
  function followed(w, r, lam, exact, steps) {
    const points = [], dt = 0.02;
    for (let step = 0; step < steps && w > 0.05 && r > 0.05 && w < 2.33 && r < 2; step++) {
      points.push([X(w), Y(r)]);
      const [dw, dr] = gradient(w, r, lam, exact);
      [w, r] = [w + dt * dw, r + dt * dr];
    }
    return line(points);
  }

  function pair(place) {
    const svg = stage(place, "One weight w (to the right) and its learned inverse r (upwards). Drag the point. Blue: the learned gradient and the path it takes; orange: the exact one.");
    inverses(svg);
    make("circle", { cx: X(1), cy: Y(1), r: 3, class: "word" }, svg);
    make("text", { x: X(1) + 8, y: Y(1) - 8, class: "word" }, svg, "most likely");
    const paths = [true, false].map((exact) => [exact, make("path", { class: exact ? "orange" : "blue" }, svg), make("path", { class: `arrow ${exact ? "orange" : "blue"}` }, svg)]);
    const dot = make("circle", { r: 8, class: "dot" }, svg);
    let w = 0.6, r = 0.7;

    /** An arrow from (w, r) along a gradient, no longer than a fifth of the picture. */
    function arrow([dw, dr]) {
      const size = Math.hypot(dw, dr) || 1, long = Math.min(120 * size, 80) / size;
      const [x, y, dx, dy] = [X(w), Y(r), long * dw, -long * dr];
      const head = (turn) => [x + dx - 0.2 * dx + turn * dy, y + dy - 0.2 * dy - turn * dx];
      return line([[x, y], [x + dx, y + dy], head(0.1), [x + dx, y + dy], head(-0.1)]);
    }

    const lam = slider(place, "λ = ", { min: 0, max: 1, step: 0.01, value: 1 }, draw);

    function draw() {
      for (const [exact, path, along] of paths) {
        path.setAttribute("d", followed(w, r, lam.value(), exact, 3000));
        along.setAttribute("d", arrow(gradient(w, r, lam.value(), exact)));
      }
      dot.setAttribute("cx", X(w)), dot.setAttribute("cy", Y(r));
      const error = r * w - 1, density = Math.log(w) - w * w / 2 - Math.log(2 * Math.PI) / 2;
      lam.words.textContent = `λ = ${lam.value().toFixed(2)}, w = ${w.toFixed(2)}, r = ${r.toFixed(2)}: reconstruction error r w − 1 = ${error.toFixed(2)}, log p = ${density.toFixed(3)}`;
    }

    draggable(svg, dot, (x, y) => {
      w = Math.min(Math.max(1 + (x - 200) / 150, 0.1), 2.25);
      r = Math.min(Math.max(1 + (150 - y) / 150, 0.1), 1.95);
      draw();
    });
    draw();
  }

  function spline(place) {
    const svg = stage(place, "Drag a knot up, down or sideways; drag its handle to turn its slope. Below: dy/dx, always above zero.");
    const knots = [{ x: -10, y: -10, d: 1 }, { x: -4, y: -6, d: 0.6 }, { x: 0, y: 1, d: 2 }, { x: 5, y: 4, d: 0.5 }, { x: 10, y: 10, d: 1 }];
    const X = (x) => 200 + 15 * x, Y = (y) => 110 - 9 * y, S = (slope) => 290 - 18 * Math.min(slope, 4.2);
    make("path", { d: line([[X(-13), Y(-11.5)], [X(13), Y(11.5)]]), class: "faint" }, svg);
    make("path", { d: line([[X(-13), S(0)], [X(13), S(0)]]), class: "faint" }, svg);
    const curve = make("path", { class: "blue" }, svg), slope = make("path", { class: "orange" }, svg);

    /** y and dy/dx of the rational-quadratic bin that x lies in; the identity outside (page 09). */
    function at(x) {
      const k = knots.findIndex((knot, i) => i && x < knot.x && x >= knots[i - 1].x);
      if (k < 1) return [x, 1];
      const a = knots[k - 1], b = knots[k], w = b.x - a.x, h = b.y - a.y;
      const s = h / w, t = (x - a.x) / w, u = t * (1 - t), D = s + (a.d + b.d - 2 * s) * u;
      const n = b.d * t * t + 2 * s * u + a.d * (1 - t) ** 2;
      return [a.y + (h * (s * t * t + a.d * u)) / D, (s * s * n) / (D * D)];
    }

    function draw() {
      const xs = Array.from({ length: 391 }, (_, i) => -13 + i / 15);
      curve.setAttribute("d", line(xs.filter((x) => Math.abs(x) <= 12).map((x) => [X(x), Y(at(x)[0])])));
      slope.setAttribute("d", line(xs.map((x) => [X(x), S(at(x)[1])])));
      for (const knot of knots) {
        knot.dot?.setAttribute("cx", X(knot.x)), knot.dot?.setAttribute("cy", Y(knot.y));
        const angle = Math.atan2(9 * knot.d, 15);
        knot.handle?.setAttribute("cx", X(knot.x) + 26 * Math.cos(angle));
        knot.handle?.setAttribute("cy", Y(knot.y) - 26 * Math.sin(angle));
      }
    }

    knots.slice(1, -1).forEach((knot, index) => {
      const [before, after] = [knots[index], knots[index + 2]];
      const within = (value, low, high) => Math.min(Math.max(value, low + 0.4), high - 0.4);
      knot.handle = make("circle", { r: 5, class: "handle" }, svg);
      knot.dot = make("circle", { r: 8, class: "dot" }, svg);
      draggable(svg, knot.dot, (x, y) => {
        knot.x = within((x - 200) / 15, before.x, after.x);
        knot.y = within((110 - y) / 9, before.y, after.y);
        draw();
      });
      draggable(svg, knot.handle, (x, y) => {
        const [right, up] = [Math.max(x - X(knot.x), 1), Math.max(Y(knot.y) - y, 0.5)];
        knot.d = Math.min(Math.max((15 * up) / (9 * right), 0.05), 8);
        draw();
      });
    });
    draw();
  }

  function stability(place) {
    const svg = stage(place, "Paths of (w, r) from near the fixed point (1, 1), with variance 1. Below 1/8 they leave it; above, they settle on it.");
    inverses(svg);
    const paths = Array.from({ length: 12 }, () => make("path", { class: "blue" }, svg));
    make("circle", { cx: X(1), cy: Y(1), r: 5, class: "dot" }, svg);
    const lam = slider(place, "λ σ² = ", { min: 0, max: 0.5, step: 0.005, value: 0.06 }, draw);

    function draw() {
      paths.forEach((path, k) => {
        const [w, r] = [1 + 0.12 * Math.cos((k * Math.PI) / 6), 1 + 0.12 * Math.sin((k * Math.PI) / 6)];
        path.setAttribute("d", followed(w, r, lam.value(), false, 3000));
      });
      const trace = -(0.5 + 2 * lam.value()) - 2 * lam.value(), det = 4 * lam.value() - 0.5;
      const rate = (trace + Math.sqrt(Math.max(trace * trace - 4 * det, 0))) / 2;
      const how = rate < 0 ? `errors decay at the rate ${(-rate).toFixed(2)} or faster` : `one error grows at the rate ${rate.toFixed(2)}`;
      lam.words.textContent = `λ σ² = ${lam.value().toFixed(3)}: ${how}`;
    }
    draw();
  }

  const plays = { pair, spline, stability };
  for (const place of document.querySelectorAll(".play")) plays[place.dataset.play]?.(place);
})();
