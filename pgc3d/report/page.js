"use strict";
// Connects the viewers, their buttons and the turntables of a report.
(() => {
  const viewers = [];

  function bytes(element) {
    const text = atob(element.textContent.trim());
    element.remove(); // the text is no longer needed
    const content = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) content[index] = text.charCodeAt(index);
    return content.buffer;
  }

  async function start(place) {
    const state = place.querySelector(".state");
    const viewer = Pgc3dControls.viewerIn(place);
    if (!viewer) {
      state.textContent = "WebGL is not available here; the turntable below needs none.";
      return;
    }
    viewers.push(viewer);
    try {
      await viewer.load(bytes(document.getElementById(place.dataset.asset)));
      state.textContent = "";
    } catch (error) {
      state.textContent = `The asset cannot be displayed: ${error.message}`;
    }
  }

  function turntable(figure) {
    const frames = Number(figure.dataset.frames);
    const [strip, slider, window_] = ["img", "input", "div"].map((name) => figure.querySelector(name));
    const show = (frame) => {
      const place = ((frame % frames) + frames) % frames;
      slider.value = String(place);
      strip.style.transform = `translateX(${-100 * place / frames}%)`;
    };
    slider.addEventListener("input", () => show(Number(slider.value)));
    strip.draggable = false;
    window_.addEventListener("pointerdown", (start) => {
      window_.setPointerCapture(start.pointerId);
      const first = Number(slider.value);
      window_.onpointermove = (event) => show(Math.round(first - (event.clientX - start.clientX) / 12));
    });
    for (const end of ["pointerup", "pointercancel"]) window_.addEventListener(end, () => { window_.onpointermove = null; });
    show(0);
  }

  document.querySelectorAll(".turntable").forEach(turntable);
  Promise.all(Array.from(document.querySelectorAll(".viewer"), start)).then(() => {
    if (viewers.length) Pgc3dControls.fill(document.getElementById("controls"), viewers);
    Pgc3dControls.link(viewers);
    document.documentElement.dataset.ready = "true";
  });
})();
