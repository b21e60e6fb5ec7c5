// The panel below the maps: shows the test image under the pointer, or the one of the slider.
"use strict";
(() => {
  const panel = document.getElementById("explorer");
  if (!panel) return;
  const find = (name) => document.getElementById("explorer-" + name);
  const data = JSON.parse(find("data").textContent);
  const maps = [...document.querySelectorAll("svg[data-map]")];
  const [slider, errors, sheet, frame] = ["slider", "errors", "sheet", "image"].map(find);
  const count = data.names.length;
  const all = [...Array(count).keys()];
  const isWrong = (i) => data.predicted[i] !== null && data.predicted[i] !== data.labels[i];
  const wrong = all.filter(isWrong);
  let shown = all; // The images that the slider steps through.
  panel.hidden = false;

  // Writes one line per pair; names go in as text, never as HTML.
  function describe(i) {
    const lines = [["Name", data.names[i]], ["Label", data.labels[i]],
                   ["Predicted", data.predicted[i]]];
    const list = document.createElement("dl");
    for (const [name, value] of lines) {
      if (value === null) continue;
      const [term, text, isolated] = ["dt", "dd", "bdi"].map((x) => document.createElement(x));
      term.textContent = name;
      isolated.textContent = value;
      text.append(isolated);
      if (name === "Predicted") text.append(isWrong(i) ? " (wrong)" : " (right)");
      list.append(term, text);
    }
    find("text").replaceChildren(list);
    slider.setAttribute("aria-valuetext", `${data.names[i]}, label ${data.labels[i]}`);
  }

  function select(i) {
    const scale = frame.clientWidth / data.side;
    sheet.style.width = `${data.columns * data.side * scale}px`;
    sheet.style.left = `${-(i % data.columns) * data.side * scale}px`;
    sheet.style.top = `${-Math.floor(i / data.columns) * data.side * scale}px`;
    frame.setAttribute("aria-label", `Test image ${data.names[i]}`);
    for (const map of maps) {
      const ring = map.querySelector(".selected");
      const [x, y] = data[map.dataset.map][i];
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
    }
    const place = shown.indexOf(i);
    if (place >= 0) slider.value = place;
    find("number").textContent =
      `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
    describe(i);
  }

  slider.addEventListener("input", () => select(shown[slider.value]));
  if (errors && wrong.length) {
    errors.addEventListener("change", () => {
      shown = errors.checked ? wrong : all;
      slider.max = shown.length - 1;
      slider.value = 0;
      select(shown[0]);
    });
  } else if (errors) {
    errors.disabled = true;
  }
  for (const map of maps) {
    const points = data[map.dataset.map];
    const follow = (event) => {
      const box = map.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * map.viewBox.baseVal.width;
      const y = (event.clientY - box.top) / box.height * map.viewBox.baseVal.height;
      let best = -1, distance = 900; // Within 30 units of the drawing.
      for (const i of shown) {
        const d = (points[i][0] - x) ** 2 + (points[i][1] - y) ** 2;
        if (d < distance) [best, distance] = [i, d];
      }
      if (best >= 0) select(best);
    };
    map.addEventListener("pointermove", follow);
    map.addEventListener("pointerdown", follow);
  }
  select(0);
})();
