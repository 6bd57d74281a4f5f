// Opens what a link leads into. Without it a reader opens it by hand.
(function () {
  "use strict";
  function open() {
    var target = document.getElementById(location.hash.slice(1));
    for (var element = target; element; element = element.parentElement) {
      if (element.tagName === "DETAILS") { element.open = true; }
    }
    if (target) { target.scrollIntoView(); }
  }
  addEventListener("hashchange", open);
  open();
})();
