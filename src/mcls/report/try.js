const at = (id) => document.getElementById(id);

function bar(name, part) {
  const row = document.createElement("div"), label = document.createElement("span");
  const box = document.createElement("div"), fill = document.createElement("i"), number = document.createElement("span");
  row.className = "bar";
  label.textContent = name;
  fill.style.display = "block";
  fill.style.width = (100 * part).toFixed(2) + "%";
  number.textContent = (100 * part).toFixed(2) + " %";
  box.append(fill);
  row.append(label, box, number);
  return row;
}

async function classify(body, type) {
  at("wrong").textContent = "";
  at("bars").replaceChildren();
  try {
    const reply = await fetch("predict", { method: "POST", body: body, headers: { "Content-Type": type } });
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    for (const one of found.predictions) {
      const name = document.createElement("p");
      name.textContent = one.input;
      if (found.predictions.length > 1) at("bars").append(name);
      for (const guess of one.top) at("bars").append(bar(guess.class, guess.probability));
    }
  } catch (error) {
    at("wrong").textContent = error.message;
  }
}

function show(file) {
  if (!file) return;
  at("shown").src = URL.createObjectURL(file);
  at("shown").hidden = false;
  at("hint").textContent = file.name;
  classify(file, "application/octet-stream");
}

if (at("drop")) {
  at("file").onchange = () => show(at("file").files[0]);
  at("drop").ondragover = (event) => { event.preventDefault(); at("drop").classList.add("over"); };
  at("drop").ondragleave = () => at("drop").classList.remove("over");
  at("drop").ondrop = (event) => { event.preventDefault(); at("drop").classList.remove("over"); show(event.dataTransfer.files[0]); };
  document.onpaste = (event) => show(event.clipboardData.files[0]);
} else {
  at("send").onclick = () => classify(at("rows").value, "text/csv");
}
