"use strict";
// A chart's values at the step under the pointer, or where the arrow keys lead.
for (const figure of document.querySelectorAll(".chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const told = figure.querySelector(".at");
  const outputs = [...figure.querySelectorAll(".legend output")];
  const last = outputs.map((output) => output.textContent);
  const steps = [...new Set(data.steps.flat())].sort((a, b) => a - b);
  let chosen = steps.length - 1;

  const nearest = (list, step) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (list[middle] <= step) low = middle; else high = middle;
    }
    return step - list[low] <= list[high] - step ? low : high;
  };
  const text = (value) => data.share ? `${+(100 * value).toPrecision(4)}%`
    : Math.abs(value) < 1000 ? String(+value.toPrecision(5))
    : value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 1e4 ? 1 : 0 });
  const show = (index) => {
    chosen = Math.min(Math.max(index, 0), steps.length - 1);
    const step = steps[chosen];
    cursor.hidden = false;
    cursor.style.left = `${100 * (step - data.low) / (data.high - data.low)}%`;
    told.textContent = `nearest to step ${step.toLocaleString("en")}`;
    outputs.forEach((output, i) => {
      output.textContent = text(data.values[i][nearest(data.steps[i], step)]);
    });
  };
  const rest = () => {
    cursor.hidden = true;
    told.textContent = "last values";
    outputs.forEach((output, i) => { output.textContent = last[i]; });
  };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    show(nearest(steps, data.low + share * (data.high - data.low)));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { show(chosen + move); event.preventDefault(); }
  });
}
