// For programs that configure their own network: ip(8), as administrators do it, and what it lists.
#ifndef IP_H
#define IP_H

#include "object.h"
#include <net/if.h>

#define IP "PATH=/usr/sbin:/sbin:/usr/bin:/bin ip "

// Runs a command; its output, of which there is not much, is in one buffer of its own.
static char *ip_output(const char *format, ...) {
    char command[512], *all = calloc(1, 1 << 16);
    size_t length = 0, got;
    va_list arguments;
    va_start(arguments, format);
    int start = snprintf(command, sizeof command, IP);
    vsnprintf(command + start, sizeof command - start, format, arguments);
    va_end(arguments);
    FILE *output = popen(command, "r");
    CHECK(output);
    while ((got = fread(all + length, 1, (1 << 16) - 1 - length, output)) > 0) length += got;
    int status = pclose(output);
    if (status) FAIL("%.180s: status %d", command, status);
    return all;
}

static void ip(const char *format, ...) {
    char arguments[512];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    free(ip_output("%s", arguments));
}

// The way out of the workload, or the loopback where it has none.
static const char *ip_device(void) { return if_nametoindex("eth0") ? "eth0" : "lo"; }

// Whether a device speaks IPv6: a workload's does not that was given no address of that kind.
static int ip_has_v6(const char *device) {
    char path[64], value = 0;
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", device);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    CHECK(fread(&value, 1, 1, file) == 1 && !fclose(file));
    return value == '0';
}

// Waits until the kernel has made an IPv6 address that was added its own, which it does on a work queue: until then no socket
// may have it, and what is sent to it is discarded.
static void ip_own(const char *address) {
    for (;;) {
        char *local = ip_output("-6 route show table local");
        int own = strstr(local, address) != 0;
        free(local);
        if (own) return;
        usleep(1000);
    }
}

// Checks that a list is as it was, and says the first line that differs.
static void ip_same(const char *what, const char *before, const char *now) {
    while (*before && *before == *now) before++, now++;
    if (*before || *now) FAIL("%s differ: it was ..%.40s, it is ..%.40s", what, before, now);
}

#endif
