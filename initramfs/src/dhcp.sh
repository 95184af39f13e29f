#!/bin/busybox sh
# Called by udhcpc with an event and the lease in the environment. Writes the lease down; init
# reads it, decides and configures.
case "$1" in
bound | renew)
	# In capitals, for udhcpc's own variables, `lease` among them, are not.
	NOTE=/run/circular/lease.$interface
	for NAME in ip subnet router dns domain hostname serverid mtu lease; do
		eval "VALUE=\$$NAME"
		printf '%s=%s\n' "$NAME" "$VALUE"
	done >"$NOTE.new"
	mv "$NOTE.new" "$NOTE"
	;;
esac
