// The camera tab: the browser shows the film and draws the boxes; Python gets one frame at a time, as a JPEG in memory,
// and the next one when it has answered. `element`, `props` and `server` are given by Gradio's HTML component.
const LONGEST = 640;  // pixels of a frame that is sent
const SMOOTHING = 600;  // milliseconds in which a bar comes 63 % of the way to a new value
const SPOKEN = 2500;  // least milliseconds between two announcements to a screen reader

const find = name => element.querySelector(name);
const [video, canvas, hint, button] = ["video", ".picture", ".hint", ".start"].map(find);
const [which, mirror, message, bars, speed, spoken] = [".which", ".mirror", ".message", ".bars", ".speed", ".spoken"].map(find);
const brush = canvas.getContext("2d");
const sent = document.createElement("canvas");
let session = 0;  // counts starts and stops: what an older one still answers is dropped
let stream = null, faces = [], size = [1, 1], smooth = null, answered = [], told = ["", 0];

function stop(text = "") {
  session += 1;
  if (stream) stream.getTracks().forEach(track => track.stop());
  stream = null; faces = []; smooth = null; answered = [];
  brush.clearRect(0, 0, canvas.width, canvas.height);
  hint.hidden = false; hint.style.display = "";
  button.textContent = "Start the camera";
  message.textContent = text;
  speed.textContent = "–";
  bars.replaceChildren();
}

function reason(error) {
  if (error.name === "NotAllowedError") return "The browser was not allowed to use the camera. Allow it in the address bar and start again.";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "There is no such camera.";
  if (error.name === "NotReadableError") return "Another program uses the camera.";
  return `The camera cannot be used: ${error.message || error.name}.`;
}

async function start() {
  const mine = ++session;
  message.textContent = "";
  if (!navigator.mediaDevices) {
    stop("Browsers give the camera to pages from this machine (http://127.0.0.1) or over https only.");
    return;
  }
  const wanted = which.value ? { deviceId: { exact: which.value } } : { facingMode: "user" };
  let opened;
  try {
    opened = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 }, ...wanted }, audio: false });
  } catch (error) {
    if (mine === session) stop(reason(error));
    return;
  }
  if (mine !== session) { opened.getTracks().forEach(track => track.stop()); return; }
  stream = opened;
  stream.getVideoTracks()[0].addEventListener("ended", () => { if (mine === session) stop("The camera was taken away."); });
  video.srcObject = stream;
  await video.play().catch(() => {});
  if (mine !== session) return;
  hint.hidden = true; hint.style.display = "none";
  button.textContent = "Stop the camera";
  listCameras();
  draw(mine);
  look(mine);
}

async function listCameras() {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(device => device.kind === "videoinput");
  const chosen = which.value;
  which.replaceChildren(new Option("the first one", ""), ...devices.map((device, at) => new Option(device.label || `camera ${at + 1}`, device.deviceId)));
  which.value = chosen;
}

function draw(mine) {
  if (mine !== session || !element.isConnected) return;
  if (video.videoWidth) {
    if (canvas.width !== video.videoWidth || canvas.height !== video.videoHeight) {
      canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    }
    brush.save();
    if (mirror.checked) { brush.translate(canvas.width, 0); brush.scale(-1, 1); }
    brush.drawImage(video, 0, 0);
    brush.restore();
    const scale = canvas.width / size[0], line = Math.max(2, canvas.width / 250), text = Math.max(14, canvas.width / 34);
    brush.lineWidth = line; brush.font = `600 ${text}px system-ui, sans-serif`; brush.textBaseline = "top";
    for (const face of faces) {
      const [left, top, width, height] = face.box.map(value => value * scale);
      const x = mirror.checked ? canvas.width - left - width : left;
      const name = `${face.label} ${Math.round(100 * face.probabilities[face.label])} %`;
      const long = brush.measureText(name).width + 2 * line, high = text * 1.3;
      const nameX = Math.max(0, Math.min(x, canvas.width - long)), nameY = top >= high ? top - high : Math.max(0, top);
      brush.strokeStyle = brush.fillStyle = color(Object.keys(face.probabilities).indexOf(face.label));
      brush.strokeRect(x, top, width, height);
      brush.fillRect(nameX, nameY, long, high);
      brush.fillStyle = "#000";
      brush.fillText(name, nameX + line, nameY + text * 0.15);
    }
  }
  requestAnimationFrame(() => draw(mine));
}

const color = at => props.colors[at % props.colors.length];
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

async function look(mine) {
  let failures = 0;
  while (mine === session) {
    if (!element.isConnected) { stop(); return; }
    // Nobody sees it: another tab of the page or of the browser is open.
    if (document.hidden || !canvas.offsetParent || !video.videoWidth) { await pause(200); continue; }
    const reduced = Math.min(1, LONGEST / Math.max(video.videoWidth, video.videoHeight));
    sent.width = Math.round(video.videoWidth * reduced); sent.height = Math.round(video.videoHeight * reduced);
    sent.getContext("2d").drawImage(video, 0, 0, sent.width, sent.height);
    const asked = performance.now();
    let answer;
    try {
      answer = await server.look({ image: sent.toDataURL("image/jpeg", 0.85), ...(window.ferKeras || {}) });
      if (!answer || !(answer.faces || answer.error)) throw new Error("no answer");
    } catch (error) {
      if (mine !== session) return;
      failures += 1;
      if (failures > 5) { stop("The app does not answer any more. Is it still running?"); return; }
      await pause(300 * failures);
      continue;
    }
    if (mine !== session) return;
    failures = 0;
    if (answer.error) { stop(answer.error); return; }
    show(answer, asked);
  }
}

function show(answer, asked) {
  const now = performance.now();
  faces = answer.faces; size = [sent.width, sent.height];
  answered.push(now);
  answered = answered.filter(time => time > now - 2000);
  const rate = answered.length > 1 ? (answered.length - 1) / (now - answered[0]) * 1000 : 0;
  speed.textContent = `${rate.toFixed(1)} frames a second · ${Math.round(now - asked)} ms from frame to answer, ${Math.round(answer.milliseconds)} of them for finding and classifying · ${faces.length || "no"} ${faces.length === 1 ? "face" : "faces"}`;
  if (!faces.length) { smooth = null; bars.replaceChildren(); say("no face", now); return; }
  const largest = faces.reduce((a, b) => a.box[2] * a.box[3] >= b.box[2] * b.box[3] ? a : b);
  const names = Object.keys(largest.probabilities);
  if (!smooth || names.some(name => !(name in smooth.shares))) smooth = { shares: { ...largest.probabilities }, time: now };
  const step = 1 - Math.exp(-(now - smooth.time) / SMOOTHING);
  for (const name of names) smooth.shares[name] += step * (largest.probabilities[name] - smooth.shares[name]);
  smooth.time = now;
  if (bars.children.length !== names.length) bars.replaceChildren(...names.map(bar));
  names.forEach((name, at) => {
    const share = Math.round(100 * smooth.shares[name]), row = bars.children[at];
    row.querySelector(".fill").style.width = `${share}%`;
    row.querySelector(".share").textContent = `${share} %`;
  });
  say(names.reduce((a, b) => smooth.shares[a] >= smooth.shares[b] ? a : b), now);
}

function bar(name, at) {
  const row = document.createElement("div");
  row.className = "bar";
  row.innerHTML = '<span class="name"></span><span class="track" aria-hidden="true"><span class="fill" style="display:block"></span></span><span class="share"></span>';
  row.querySelector(".name").textContent = name;
  row.querySelector(".fill").style.background = color(at);
  return row;
}

function say(text, now) {
  if (text === told[0] || now - told[1] < SPOKEN) return;
  told = [text, now];
  spoken.textContent = text;
}

button.addEventListener("click", () => stream ? stop() : start());
which.addEventListener("change", () => { if (stream) { stop(); start(); } });
