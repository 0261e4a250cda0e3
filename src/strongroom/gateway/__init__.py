"""HTTP for those who are not on the fabric: `curl`, a web page, a program in any language."""

from strongroom.gateway.server import serving_http as serving_http
