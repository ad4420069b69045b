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
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("aria-label", "the asset; drag to orbit");
    place.prepend(canvas);
    let viewer;
    try {
      viewer = new Pgc3dViewer.Viewer(canvas);
    } catch (error) {
      state.textContent = "WebGL is not available here; the turntable below needs none.";
      return;
    }
    viewers.push(viewer);
    viewer.setBackground(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    try {
      await viewer.load(bytes(document.getElementById(place.dataset.asset)));
      state.textContent = "";
    } catch (error) {
      state.textContent = `The asset cannot be displayed: ${error.message}`;
    }
  }

  function link() {
    for (const viewer of viewers) {
      viewer.onCamera = () => { for (const other of viewers) if (other !== viewer) other.follow(viewer); };
    }
  }

  // Buttons of which one is pressed.
  function choice(names, current, chosen) {
    const group = document.createElement("div");
    for (const name of names) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", String(name === current));
      button.addEventListener("click", () => {
        for (const one of group.children) one.setAttribute("aria-pressed", String(one === button));
        chosen(name);
      });
      group.append(button);
    }
    return group;
  }

  function button(name, pressed) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = name;
    made.addEventListener("click", () => pressed(made));
    return made;
  }

  function controls() {
    const bar = document.getElementById("controls");
    const others = document.createElement("div");
    const turning = button("turn", (self) => {
      const on = self.getAttribute("aria-pressed") !== "true";
      self.setAttribute("aria-pressed", String(on));
      viewers[0].turn(on); // the others follow
    });
    turning.setAttribute("aria-pressed", "false");
    others.append(turning, button("reset view", () => { for (const viewer of viewers) viewer.reset(); }));
    bar.append(
      choice(Pgc3dViewer.MODES, viewers[0].mode, (mode) => { for (const viewer of viewers) viewer.show(mode); }),
      choice(Pgc3dViewer.BACKGROUNDS, viewers[0].background, (name) => { for (const viewer of viewers) viewer.setBackground(name); }),
      others,
    );
    bar.hidden = false;
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
    if (viewers.length) controls();
    link();
    document.documentElement.dataset.ready = "true";
  });
})();
