"use strict";
// Sliders: one of the frames is shown, and a button moves along them.
for (const slides of document.querySelectorAll(".slides")) {
  const input = slides.querySelector("input");
  const output = slides.querySelector("output");
  const button = slides.querySelector("button");
  const frames = [...slides.querySelectorAll(".frame")];
  let timer = null;
  const show = () => {
    const at = Number(input.value);
    frames.forEach((frame, number) => { frame.hidden = number !== at; });
    output.textContent = frames[at].dataset.label;
    input.setAttribute("aria-valuetext", frames[at].dataset.label);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    button.setAttribute("aria-pressed", "false");
  };
  const step = () => {
    input.value = Number(input.value) + 1;
    show();
    if (Number(input.value) === frames.length - 1) stop();
  };
  input.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (Number(input.value) === frames.length - 1) { input.value = 0; show(); }
    button.textContent = "Stop";
    button.setAttribute("aria-pressed", "true");
    timer = setInterval(step, 350);
  });
  show(); // A browser may keep a slider's place when it loads the page again.
}
