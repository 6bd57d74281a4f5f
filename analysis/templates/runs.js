// Shows and hides runs in all figures at once: by the list, by the entries of legends, and by groups of runs.
(function () {
  "use strict";
  var picker = document.querySelector(".picker");
  if (!picker) { return; }
  var boxes = Array.from(picker.querySelectorAll("input"));
  function all(name, run) { return document.querySelectorAll("[data-" + name + "='" + run + "']"); }
  function show(box) {
    all("run", box.value).forEach(function (drawn) { drawn.style.display = box.checked ? "" : "none"; });
    all("key", box.value).forEach(function (entry) { entry.classList.toggle("off", !box.checked); });
    all("row", box.value).forEach(function (row) { row.classList.toggle("off", !box.checked); });
  }
  function summary() {
    var shown = boxes.filter(function (box) { return box.checked; }).length;
    picker.querySelector("summary").textContent =
      "Runs shown in the figures: " + (shown === boxes.length ? "all " + shown : shown + " of " + boxes.length);
  }
  function set(chosen, checked) {
    chosen.forEach(function (box) { if (box.checked !== checked) { box.checked = checked; show(box); } });
    summary();
  }
  function button(text, choose) {
    var made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", function () {
      var chosen = boxes.filter(choose);
      set(chosen, !chosen.every(function (box) { return box.checked; }));
    });
    picker.querySelector(".groups").appendChild(made);
  }
  button("All", function () { return true; });
  ["arch", "optimizer"].forEach(function (kind) {
    var of = function (box) { return box.parentNode.dataset[kind]; };
    Array.from(new Set(boxes.map(of))).forEach(function (name) {
      button(name, function (box) { return of(box) === name; });
    });
  });
  boxes.forEach(function (box) {
    box.addEventListener("change", function () { show(box); summary(); });
    all("key", box.value).forEach(function (entry) {
      entry.addEventListener("click", function () { set([box], !box.checked); });
      if (!entry.querySelector("text")) { return; }  // a line or a marker of the same entry
      entry.setAttribute("tabindex", "0");
      entry.setAttribute("role", "button");
      entry.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); set([box], !box.checked); }
      });
    });
    if (!box.checked) { show(box); }  // the browser has kept it from before
  });
  summary();
  picker.hidden = false;
})();
