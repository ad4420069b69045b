"use strict";
// Follows the server's state: texts, previews and charts of each run, and the assets in linked viewers.
(() => {
  const EVERY = 1000, AFTER_ERROR = 3000; // milliseconds between two requests
  const notice = document.getElementById("notice");
  const runs = Array.from(document.querySelectorAll(".run"), (place) => ({ place, index: Number(place.dataset.index) }));
  const slots = Array.from(document.querySelectorAll(".viewer"), (place) => {
    const state = place.querySelector(".state");
    const viewer = Pgc3dControls.viewerIn(place);
    if (!viewer) state.textContent = "WebGL is not available here.";
    return { place, state, viewer, kind: place.dataset.kind, index: Number(place.dataset.index), version: "", busy: false };
  });
  const viewers = slots.map((slot) => slot.viewer).filter(Boolean);
  const croppers = [], comparers = []; // of the previews of each run
  let drawn = "", split = null;

  async function fetched(address) {
    const response = await fetch(address, { cache: "no-store" });
    if (response.ok) return response;
    const error = new Error((await response.text()).trim());
    error.refused = response.status === 403;
    throw error;
  }

  function showStatus(place, run) {
    const state = (one) => (one.status === "begun" ? "" : `, ${one.status}`); // which its step tells
    const stages = run.stages.map((one) => `${one.name}: step ${one.step} of ${one.planned ?? "unknown"}${state(one)}`);
    const age = run.status === "done" || run.age === null ? [] : [`written ${duration(run.age)} ago`];
    const seconds = run.newest.seconds_left, left = run.status === "running" && seconds ? [`about ${duration(seconds)} left`] : [];
    place.querySelector(".prompt").textContent = run.prompt;
    place.querySelector(".status").textContent = [run.status, ...stages, ...left, ...age].join("; ");
    const bar = place.querySelector("progress");
    bar.value = run.status === "done" ? 1 : run.planned ? Math.min(run.step / run.planned, 1) : 0;
    const values = Object.entries(run.newest).filter(([name]) => !name.startsWith("seconds"));
    place.querySelector(".newest").replaceChildren(...values.map(([name, value]) => {
      const item = document.createElement("span"), number = document.createElement("b");
      number.textContent = value === null ? "not finite" : String(Number(value.toPrecision(4)));
      item.append(`${name} `, number);
      return item;
    }));
  }

  function duration(seconds) {
    if (seconds < 120) return `${Math.round(seconds)} s`;
    return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
  }

  function showNotes(place, notes) {
    place.querySelector(".notes").replaceChildren(...notes.map((text) => {
      const line = document.createElement("p");
      line.className = "note";
      line.textContent = text;
      return line;
    }));
  }

  // The same view in the previews of all runs.
  function chooseView(name) {
    for (const crop of croppers) crop(name);
    for (const button of document.querySelectorAll(".preview button:not(.compare)")) button.setAttribute("aria-pressed", String(button.textContent === name));
  }

  // The previews of a run: the newest, an earlier one, or one of its views.
  function previews(index, figure) {
    const [image, other, slider, cut, caption] = ["img", ".other", ".step", ".cut", "figcaption"].map((name) => figure.querySelector(name));
    const clipping = figure.parentElement.querySelector(".clipping");
    const columns = Number(figure.dataset.columns), rows = Number(figure.dataset.rows);
    const sheet = figure.querySelector(".sheet");
    let list = [], clipped = new Set(), shown = "", view = "all views", comparing = false;
    const show = () => {
      const place = Number(slider.value), [stage, step] = list[place], name = `${place}-${stage}-${step}`;
      if (name === shown) return;
      shown = name;
      image.src = `/preview/${index}/${place}?v=${encodeURIComponent(name)}`;
      clipping.hidden = !clipped.has(place);
      if (clipped.has(place)) clipping.querySelector("img").src = `/clipping/${index}/${place}?v=${encodeURIComponent(name)}`;
      caption.textContent = `${stage}, step ${step}: preview ${place + 1} of ${list.length}`;
    };
    const crop = () => {
      const whole = view === "all views", number = whole ? 0 : Number(view) - 1;
      const across = -100 * (number % columns), down = -100 * Math.floor(number / columns);
      for (const one of [image, other]) {
        one.style.width = whole ? "" : `${100 * columns}%`;
        one.style.transform = whole ? "" : `translate(${across / columns}%, ${down / rows}%)`;
      }
      // Of the whole sheet, in per cent of the image's own width: the part left of the line shows the other one.
      const line = whole ? Number(cut.value) : (100 * (number % columns) + Number(cut.value)) / columns;
      other.style.clipPath = `inset(0 ${100 - line}% 0 0)`;
      sheet.style.aspectRatio = whole ? "" : `${image.naturalWidth / columns} / ${image.naturalHeight / rows}`;
    };
    // On the left of the line: the other run's preview, or the first one of this run.
    const compare = () => {
      const theirs = document.querySelectorAll(".preview .sheet img:first-child")[1 - index];
      const source = runs.length > 1 ? theirs.getAttribute("src") : `/preview/${index}/0?v=first`;
      toggle.hidden = !source; // a run may have no previews
      other.hidden = cut.hidden = !comparing || !source;
      if (other.hidden) return;
      if (other.getAttribute("src") !== source) other.src = source;
      crop();
    };
    comparers.push(compare);
    const names = ["all views", ...Array.from({ length: columns * rows }, (_, number) => String(number + 1))];
    figure.querySelector(".buttons").append(Pgc3dControls.choice(names, names[0], chooseView));
    const toggle = document.createElement("button");
    toggle.type = "button";
    toggle.className = "compare";
    toggle.textContent = runs.length > 1 ? `compare with ${"BA"[index]}` : "compare with the first";
    toggle.setAttribute("aria-pressed", "false");
    toggle.addEventListener("click", () => {
      comparing = !comparing;
      toggle.setAttribute("aria-pressed", String(comparing));
      compare();
    });
    figure.querySelector(".buttons").append(toggle);
    croppers.push((name) => { view = name; crop(); });
    image.addEventListener("load", () => { crop(); for (const one of comparers) one(); });
    cut.addEventListener("input", crop);
    slider.addEventListener("input", show);
    return (next, withClipping) => {
      const isNewest = Number(slider.value) >= list.length - 1;
      list = next;
      clipped = new Set(withClipping);
      figure.hidden = !list.length;
      if (!list.length) return;
      slider.max = String(list.length - 1);
      slider.disabled = list.length < 2;
      if (isNewest) slider.value = slider.max;
      show();
    };
  }

  async function showAsset(slot, index, asset) {
    if (!slot.viewer || slot.busy || !asset || asset.version === slot.version) return;
    slot.version = asset.version;
    slot.busy = true;
    if (!slot.viewer.root) slot.state.textContent = `loading ${asset.name} ...`;
    try {
      const response = await fetched(`/${slot.kind}/${index}.glb?v=${asset.version}`);
      await slot.viewer.load(await response.arrayBuffer());
      slot.state.textContent = "";
      const placed = slots.find((one) => one !== slot && one.viewer && one.viewer.root);
      if (placed) slot.viewer.follow(placed.viewer);
      if (split) split.offer();
      slot.place.dataset.loaded = asset.version;
    } catch (error) {
      slot.state.textContent = `The asset cannot be displayed: ${error.message}`;
    }
    slot.busy = false;
  }

  async function showCharts(version) {
    if (version === drawn || !document.getElementById("curves")) return;
    const charts = await (await fetched("/charts.json")).json();
    for (const [name, html] of Object.entries(charts)) {
      const section = document.getElementById(name);
      section.hidden = !html;
      section.querySelector(".charts").innerHTML = html; // its texts were escaped by the server
    }
    drawn = version;
  }

  async function update() {
    const state = await (await fetched("/state.json")).json();
    state.runs.forEach((run, index) => {
      const { place, follow } = runs[index];
      showNotes(place, run.notes);
      if (follow) {
        showStatus(place, run);
        follow(run.previews, run.clipping);
      }
    });
    for (const slot of slots) {
      const run = state.runs[slot.index];
      if (slot.kind === "before") document.getElementById("viewers").classList.toggle("single", !run.before);
      showAsset(slot, slot.index, run[slot.kind]);
    }
    await showCharts(state.charts.join(" "));
    notice.hidden = true;
  }

  async function poll() {
    let pause = EVERY;
    try {
      await update();
    } catch (error) {
      pause = AFTER_ERROR;
      notice.hidden = false;
      notice.textContent = error.refused
        ? "The server has another token now; open the address that pgc3d view printed."
        : `The server does not answer, so this is the last state: ${error.message}`;
    }
    document.documentElement.dataset.ready = "true";
    setTimeout(poll, pause);
  }

  function slider(name, low, high, value, moved) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "range", min: String(low), max: String(high), step: "any", value: String(value) });
    input.addEventListener("input", () => moved(Number(input.value)));
    label.append(name, input);
    return label;
  }

  // Two assets side by side, or one over the other with a line between them.
  function splitter(bar) {
    const label = document.getElementById("split"), place = document.querySelector("#viewers .columns");
    const names = Array.from(place.querySelectorAll("h3"), (head) => head.textContent);
    const cut = label.querySelector("input");
    const move = () => place.style.setProperty("--cut", `${cut.value}%`);
    const choose = (name) => {
      place.classList.toggle("overlay", name === "slider");
      label.hidden = name !== "slider";
    };
    label.querySelector("span").textContent = `${names[0]} | ${names[1]}`;
    cut.addEventListener("input", move);
    move();
    const group = Pgc3dControls.choice(["side by side", "slider"], "side by side", choose);
    group.hidden = true;
    bar.append(group);
    return { offer: () => { group.hidden = !slots.every((slot) => slot.viewer && slot.viewer.root); } };
  }

  for (const run of runs) {
    const figure = run.place.querySelector(".preview");
    if (figure) run.follow = previews(run.index, figure);
  }
  if (viewers.length) {
    const bar = document.getElementById("controls"), light = { degrees: 0, brightness: 1 };
    const lit = () => { for (const viewer of viewers) viewer.light(light.degrees, light.brightness); };
    Pgc3dControls.fill(bar, viewers);
    Pgc3dControls.link(viewers);
    if (slots.length > 1) split = splitter(bar);
    bar.append(
      slider("light direction", -180, 180, 0, (value) => { light.degrees = value; lit(); }),
      slider("brightness", 0.1, 3, 1, (value) => { light.brightness = value; lit(); }),
    );
  }
  poll();
})();
