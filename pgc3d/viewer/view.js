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
    return { place, state, viewer, version: "", busy: false };
  });
  const viewers = slots.map((slot) => slot.viewer).filter(Boolean);
  const croppers = []; // of the previews of each run
  let drawn = "";

  async function fetched(address) {
    const response = await fetch(address, { cache: "no-store" });
    if (response.ok) return response;
    const error = new Error((await response.text()).trim());
    error.refused = response.status === 403;
    throw error;
  }

  function showStatus(place, run) {
    const stages = run.stages.map((one) => `${one.name}: step ${one.step} of ${one.planned ?? "unknown"}, ${one.status}`);
    const age = run.status === "done" || run.age === null ? [] : [`written ${duration(run.age)} ago`];
    const seconds = run.newest.seconds_left, left = run.status === "running" && seconds ? [`about ${duration(seconds)} left`] : [];
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
    for (const button of document.querySelectorAll(".preview button")) button.setAttribute("aria-pressed", String(button.textContent === name));
  }

  // The previews of a run: the newest, an earlier one, or one of its views.
  function previews(index, figure) {
    const [image, slider, caption] = ["img", "input", "figcaption"].map((name) => figure.querySelector(name));
    const columns = Number(figure.dataset.columns), rows = Number(figure.dataset.rows);
    const sheet = figure.querySelector(".sheet");
    let list = [], shown = "", view = "all views";
    const show = () => {
      const place = Number(slider.value), [stage, step] = list[place], name = `${place}-${stage}-${step}`;
      if (name === shown) return;
      shown = name;
      image.src = `/preview/${index}/${place}?v=${encodeURIComponent(name)}`;
      caption.textContent = `${stage}, step ${step}: preview ${place + 1} of ${list.length}`;
    };
    const crop = () => {
      const whole = view === "all views", number = whole ? 0 : Number(view) - 1;
      const across = -100 * (number % columns), down = -100 * Math.floor(number / columns);
      image.style.width = whole ? "" : `${100 * columns}%`;
      image.style.transform = whole ? "" : `translate(${across / columns}%, ${down / rows}%)`;
      sheet.style.aspectRatio = whole ? "" : `${image.naturalWidth / columns} / ${image.naturalHeight / rows}`;
    };
    const names = ["all views", ...Array.from({ length: columns * rows }, (_, number) => String(number + 1))];
    figure.querySelector(".buttons").append(Pgc3dControls.choice(names, names[0], chooseView));
    croppers.push((name) => { view = name; crop(); });
    image.addEventListener("load", crop);
    slider.addEventListener("input", show);
    return (next) => {
      const isNewest = Number(slider.value) >= list.length - 1;
      list = next;
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
      const response = await fetched(`/asset/${index}.glb?v=${asset.version}`);
      await slot.viewer.load(await response.arrayBuffer());
      slot.state.textContent = "";
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
        follow(run.previews);
      }
      showAsset(slots[index], index, run.asset);
    });
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

  for (const run of runs) {
    const figure = run.place.querySelector(".preview");
    if (figure) run.follow = previews(run.index, figure);
  }
  if (viewers.length) {
    const bar = document.getElementById("controls"), light = { degrees: 0, brightness: 1 };
    const lit = () => { for (const viewer of viewers) viewer.light(light.degrees, light.brightness); };
    Pgc3dControls.fill(bar, viewers);
    Pgc3dControls.link(viewers);
    bar.append(
      slider("light direction", -180, 180, 0, (value) => { light.degrees = value; lit(); }),
      slider("brightness", 0.1, 3, 1, (value) => { light.brightness = value; lit(); }),
    );
  }
  poll();
})();
