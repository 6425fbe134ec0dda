"use strict";
(() => {
  const $ = (name) => document.getElementById(name);
  const RAMP = [[0.25, 87, 16, 110], [0.4, 137, 34, 106], [0.55, 188, 55, 84], [0.7, 227, 89, 51], [0.85, 249, 142, 9], [0.95, 246, 215, 70], [1, 252, 255, 164]];
  const POINTS = /\.(ply|pcd)$/i, TIFF = /\.tiff?$/i, SIDE = 1600;
  const files = { image: null, depth: null };
  let needs = null, shown = null, round = 0, scored = false;

  const colour = (level) => {
    const at = 0.25 + 0.75 * level;
    const next = Math.max(1, RAMP.findIndex((stop) => stop[0] >= at));
    const [a, b] = [RAMP[next - 1], RAMP[next]];
    const t = Math.min(1, Math.max(0, (at - a[0]) / (b[0] - a[0])));
    return [1, 2, 3].map((i) => Math.round(a[i] + t * (b[i] - a[i])));
  };
  const number = (value, digits = 4) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits).replace(/\.?0+$/, ""));
  const boxWords = (box) => (box && box.length ? `${box[1]}, ${box[0]} to ${box[3]}, ${box[2]}` : "–");
  const say = (text, error = false) => { $("status").textContent = text; $("status").className = error ? "error" : ""; };

  async function ask(path, options = {}) {
    const key = $("key").value;
    const answer = await fetch(path, { ...options, headers: key ? { "X-API-Key": key } : {} });
    const body = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
    if (answer.status === 401) {
      $("key-field").hidden = false;
      $("key").focus();
      throw new Error(key ? "This key is not valid here." : "This service asks for a key. Enter it above.");
    }
    if (!answer.ok) throw new Error(body.error || `status ${answer.status}`);
    return body;
  }

  async function listModels() {
    try {
      const all = await ask("v2/repository/index", { method: "POST" });
      const usable = all.filter((one) => one.kind === "method" && one.state === "READY");
      const chosen = $("model").value || new URLSearchParams(location.search).get("model");
      $("model").replaceChildren(...usable.map((one) => new Option(one.name, one.name)));
      if (usable.some((one) => one.name === chosen)) $("model").value = chosen;
      const banks = all.filter((one) => one.kind === "bank").length;
      say(usable.length ? "" : banks ? `There are ${banks} banks, which take features from programs, and no model of pictures.` : "There are no models.");
      if (usable.length) await chooseModel();
    } catch (error) { say(error.message, true); }
  }

  async function chooseModel() {
    const name = $("model").value;
    needs = null;
    forget();
    try {
      const card = await ask(`v2/models/${encodeURIComponent(name)}`);
      if (name !== $("model").value) return;
      needs = card.parameters.needs || ["rgb"];
      $("depth-zone").hidden = !card.inputs.some((one) => one.name === "xyz");
      if ($("depth-zone").hidden) take("depth", null);
      $("image-zone").hidden = false;
      $("rate").disabled = !card.parameters.calibrated;
      const leastRate = card.parameters.least_rate ?? 0;
      for (const option of $("rate").options) option.disabled = option.value !== "" && Number(option.value) < leastRate * (1 - 1e-9);
      if ($("rate").selectedOptions[0].disabled) $("rate").value = "";
      say("");
    } catch (error) { say(error.message, true); }
    update();
    if (complete()) submit();
  }

  function take(kind, file) {
    files[kind] = file;
    const rest = { image: "Drop a file here, or choose one", depth: "TIFF of points beside the picture; PLY or PCD alone" };
    $(`${kind}-name`).textContent = file ? file.name : rest[kind];
    $(`${kind}-zone`).classList.toggle("filled", Boolean(file));
    update();
  }

  function forget() {  // no verdict stays beside files or a model that it is not of
    round++;
    shown = null;
    $("result").hidden = true;
  }

  const complete = () => {
    if (!needs) return false;  // what the model takes is not known yet
    if (files.depth && POINTS.test(files.depth.name) && !files.image) return true;
    return (!needs.includes("rgb") || files.image) && (!needs.includes("xyz") || files.depth) && (files.image || files.depth);
  };
  function update() { $("score").disabled = !$("model").value || !complete(); }
  function taken(list, kind) {
    if (scored) for (const one of ["image", "depth"]) take(one, null);  // a file after a verdict is of another part
    scored = false;
    forget();
    for (const file of list) {
      const deep = POINTS.test(file.name) || (TIFF.test(file.name) && (list.length > 1 || files.image) && needs?.includes("xyz"));
      take(list.length > 1 || POINTS.test(file.name) ? (deep ? "depth" : "image") : kind, file);
    }
    if (complete() && $("model").value) submit();
    else if (needs && $("model").value) say(`The model needs a ${files.image ? "file of depth" : "picture"}, too.`);
  }

  async function submit() {
    const mine = ++round, body = new FormData(), begin = performance.now();
    scored = true;
    for (const kind of ["image", "depth"]) if (files[kind]) body.append(kind, files[kind]);
    const query = new URLSearchParams({ pictures: "map,image,nearest", side: SIDE });
    if ($("rate").value && !$("rate").disabled) query.set("false_alarm_rate", $("rate").value);
    say("Scoring …");
    $("score").disabled = true;
    try {
      const said = await ask(`predict/${encodeURIComponent($("model").value)}?${query}`, { method: "POST", body });
      if (mine !== round) return;
      await show(said, performance.now() - begin);
      say("");
    } catch (error) { if (mine === round) { scored = false; $("result").hidden = true; say(error.message, true); } }
    update();
  }

  async function picture(png) {
    const image = new Image();
    image.src = `data:image/png;base64,${png}`;
    await image.decode();
    return image;
  }

  async function show(said, taken) {
    const image = await picture(said.pictures.image.png), map = await picture(said.pictures.map.png);
    shown = { said, image, heat: heatOf(map, said) };
    const verdict = $("verdict");
    verdict.textContent = said.verdict === null ? "No verdict" : said.verdict === "bad" ? "Bad" : "Good";
    verdict.className = `word ${said.verdict || ""}`;
    const rate = said.false_alarm_rate === null ? "the model is not calibrated" : `at a false-alarm rate of ${number(100 * said.false_alarm_rate)} %${said.extrapolated ? " (extrapolated)" : ""}`;
    $("about").textContent = `${said.id} · ${said.model} · ${rate}`;
    $("value-score").textContent = number(said.score);
    $("value-threshold").textContent = number(said.threshold);
    $("value-p").textContent = number(said.p_value, 3);
    $("value-time").textContent = taken < 1000 ? `${Math.round(taken)} ms` : `${number(taken / 1000, 3)} s`;
    $("notes").replaceChildren(...said.notes.map((words) => Object.assign(document.createElement("li"), { textContent: words })));
    $("notes").hidden = !said.notes.length;
    rows("regions", said.regions.map((one, i) => [i + 1, number(one.peak), number(one.p_value, 3), one.area, boxWords(one.box)]));
    $("no-regions").textContent = said.regions.length ? "Places are x, y of the first pixel, and of the one behind the last." : said.verdict === null ? "The model is not calibrated." : "None.";
    const several = Object.keys(said.explanation).length > 1;
    const broken = (name) => name?.replaceAll("/", "/\u200b") ?? "–";  // lines may end behind a slash
    const nearest = Object.entries(said.explanation).flatMap(([part, one]) => one.nearest_normal_patches.map((patch) => [several ? `${part}: ${broken(patch.sample)}` : broken(patch.sample), boxWords(patch.box), number(patch.distance)]));
    rows("nearest", nearest);
    $("crops").replaceChildren(...Object.entries(said.explanation).flatMap(([part, one]) => cropsOf(part, one, several)));
    $("no-nearest").textContent = !nearest.length ? "This model has no bank that could name them." : several ? "Those that are nearest to the worst patch of each bank, which is dashed in the picture." : "Those that are nearest to the worst patch, which is dashed in the picture.";
    $("low").textContent = number(said.map_scale[0], 3);
    $("high").textContent = number(said.map_scale[1], 3);
    $("result").hidden = false;
    draw();
    $("canvas").setAttribute("aria-label", `Picture ${said.id} with its anomaly map: ${verdict.textContent}, score ${number(said.score)}, ${said.regions.length} regions`);
    $("result").focus({ preventScroll: true });
    $("result").scrollIntoView({ block: "nearest" });
  }

  function cropsOf(part, one, several) {
    const there = one.nearest_normal_patches.filter((patch) => patch.png);
    if (!there.length) return [];
    const figure = (png, words, kind) => {
      const whole = Object.assign(document.createElement("figure"), { className: kind });
      const image = Object.assign(new Image(), { src: `data:image/png;base64,${png}`, alt: words });
      whole.append(image, Object.assign(document.createElement("figcaption"), { textContent: words }));
      return whole;
    };
    const normal = there.map((patch) => figure(patch.png, `${patch.sample.split("/").pop()}\ndistance ${number(patch.distance, 3)}`, "normal"));
    return [figure(one.png, several ? `${part}: the worst patch` : "the worst patch", "worst"), ...normal];
  }

  function rows(table, content) {
    $(table).hidden = !content.length;
    $(table).tBodies[0].replaceChildren(...content.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
      return row;
    }));
  }

  function heatOf(map, said) {
    const canvas = document.createElement("canvas");
    canvas.width = map.naturalWidth;
    canvas.height = map.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(map, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height), data = pixels.data;
    const { low, high } = said.pictures.map, [first, last] = said.map_scale;
    const table = Array.from({ length: 256 }, (_, value) => {
      const level = Math.min(1, Math.max(0, (low + (value / 255) * (high - low) - first) / Math.max(last - first, 1e-12)));
      return [...colour(level), Math.round(255 * Math.pow(level, 0.7))];
    });
    for (let i = 0; i < data.length; i += 4) data.set(table[data[i]], i);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function draw() {
    if (!shown) return;
    const { said, image, heat } = shown, canvas = $("canvas"), context = canvas.getContext("2d");
    const factor = Math.max(1, Math.round(800 / Math.max(image.naturalWidth, image.naturalHeight)));
    canvas.width = image.naturalWidth * factor;
    canvas.height = image.naturalHeight * factor;
    const opacity = $("opacity").value / 100, scale = canvas.height / said.size[0];
    context.imageSmoothingEnabled = false;
    context.filter = opacity ? "saturate(0.5)" : "none";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = true;
    context.drawImage(heat, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    if (!$("outlines").checked) return;
    const width = Math.max(1.5, Math.max(canvas.width, canvas.height) / 400);
    const stroke = ([top, left, bottom, right], dash) => {
      for (const [style, line] of [["#111", 2.4 * width], ["#fff", width]]) {
        context.strokeStyle = style; context.lineWidth = line; context.setLineDash(dash);
        context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
      }
    };
    const label = (words, x, y) => {
      const at = [Math.max(0, Math.min(x, canvas.width - context.measureText(words).width - 2)), Math.min(y, canvas.height - 3)];
      context.setLineDash([]); context.lineWidth = 3 * width; context.strokeStyle = "#111"; context.strokeText(words, ...at);
      context.fillStyle = "#fff"; context.fillText(words, ...at);
    };
    context.font = `600 ${Math.max(12, 9 * width)}px sans-serif`;
    said.regions.slice(0, 9).forEach((one, i) => {
      stroke(one.box, []);
      label(`${i + 1}`, one.box[1] * scale + 3, Math.max(one.box[0] * scale - 4, 9 * width));
    });
    const parts = Object.entries(said.explanation);
    for (const [part, one] of parts) {
      stroke(one.box, [4 * width, 3 * width]);
      if (parts.length > 1) label(part, one.box[1] * scale, one.box[2] * scale + 11 * width);
    }
  }

  $("ramp").style.background = `linear-gradient(90deg, ${[0, 0.2, 0.4, 0.6, 0.8, 1].map((level) => `rgb(${colour(level)})`).join(", ")})`;
  $("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("model").addEventListener("change", chooseModel);
  $("rate").addEventListener("change", () => { if (complete()) submit(); });
  $("key").value = sessionStorage.getItem("key") || "";
  $("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); listModels(); });
  for (const kind of ["image", "depth"]) {
    const zone = $(`${kind}-zone`);
    $(kind).addEventListener("change", (event) => { if (event.target.files.length) taken([...event.target.files], kind); });
    zone.addEventListener("dragenter", () => zone.classList.add("over"));
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => { event.preventDefault(); event.stopPropagation(); zone.classList.remove("over"); taken([...event.dataTransfer.files], kind); });
  }
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); taken([...event.dataTransfer.files], "image"); });
  $("opacity").addEventListener("input", draw);
  $("outlines").addEventListener("change", draw);
  listModels();
})();
