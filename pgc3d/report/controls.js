"use strict";
// What pages put around Pgc3dViewer: a canvas, linked cameras and buttons.
const Pgc3dControls = (() => {
  // A viewer on a new canvas, null where there is no WebGL.
  function viewerIn(place) {
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("aria-label", "the asset; drag to orbit");
    place.prepend(canvas);
    try {
      const viewer = new Pgc3dViewer.Viewer(canvas);
      viewer.setBackground(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      return viewer;
    } catch (error) {
      return null;
    }
  }

  // One camera moves all.
  function link(viewers) {
    for (const viewer of viewers) {
      viewer.onCamera = () => { for (const other of viewers) if (other !== viewer) other.follow(viewer); };
    }
  }

  // Buttons of which one is pressed, after the name of what they choose, if any.
  function choice(names, current, chosen, title = "") {
    const group = document.createElement("div"), buttons = [];
    group.setAttribute("role", "group");
    if (title) {
      const label = document.createElement("span");
      label.textContent = title;
      group.append(label);
      group.setAttribute("aria-label", title);
    }
    for (const name of names) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", String(name === current));
      button.addEventListener("click", () => {
        for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
        chosen(name);
      });
      buttons.push(button);
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

  // The buttons of some viewers.
  function fill(bar, viewers) {
    const others = document.createElement("div");
    const turning = button("turn", (self) => {
      const on = self.getAttribute("aria-pressed") !== "true";
      self.setAttribute("aria-pressed", String(on));
      (viewers.find((one) => one.root) ?? viewers[0]).turn(on); // the others follow
    });
    turning.setAttribute("aria-pressed", "false");
    others.append(turning, button("reset view", () => { for (const viewer of viewers) viewer.reset(); }));
    bar.append(
      choice(Pgc3dViewer.MODES, viewers[0].mode, (mode) => { for (const viewer of viewers) viewer.show(mode); }),
      choice(Pgc3dViewer.BACKGROUNDS, viewers[0].background, (name) => { for (const viewer of viewers) viewer.setBackground(name); }, "background"),
      others,
    );
    bar.hidden = false;
  }

  return { viewerIn, link, choice, fill };
})();
