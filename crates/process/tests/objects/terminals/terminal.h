// A pair of pseudo-terminals in a known state.
#ifndef TERMINAL_H
#define TERMINAL_H

#include "object.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

struct pair {
    int master, slave;
    char name[32];
};

static struct pair open_pair(void) {
    struct pair pair;
    pair.master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    CHECK(pair.master >= 0);
    CHECK(!grantpt(pair.master) && !unlockpt(pair.master));
    CHECK(!ptsname_r(pair.master, pair.name, sizeof pair.name));
    pair.slave = open(pair.name, O_RDWR | O_NOCTTY);
    CHECK(pair.slave >= 0);
    return pair;
}

// Bytes as they are, in both directions.
static void make_raw(int slave) {
    struct termios termios;
    CHECK(!tcgetattr(slave, &termios));
    cfmakeraw(&termios);
    CHECK(!tcsetattr(slave, TCSANOW, &termios));
}

static void set_local(int slave, tcflag_t clear, tcflag_t set) {
    struct termios termios;
    CHECK(!tcgetattr(slave, &termios));
    termios.c_lflag = (termios.c_lflag & ~clear) | set;
    CHECK(!tcsetattr(slave, TCSANOW, &termios));
}

static void put(int fd, const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t got = write(fd, at, length);
        if (got < 0 && errno == EINTR) continue;
        CHECK(got > 0);
        at += got;
        length -= got;
    }
}

// Reads exactly this.
static void expect(int fd, const void *bytes, size_t length) {
    char buffer[8192];
    size_t done = 0;
    while (done < length) {
        ssize_t got = read(fd, buffer + done, length - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) FAIL("%zd after %zu of %zu bytes", got, done, length);
        done += got;
    }
    for (size_t at = 0; at < length; at++)
        if (buffer[at] != ((const char *)bytes)[at])
            FAIL("byte %zu is %#x, not %#x", at, buffer[at] & 255, ((const char *)bytes)[at] & 255);
}

// One read gives this.
static void expect_read(int fd, const void *bytes, size_t length) {
    char buffer[8192];
    ssize_t got;
    do got = read(fd, buffer, sizeof buffer);
    while (got < 0 && errno == EINTR);
    CHECK_EQUAL(got, length);
    CHECK(!memcmp(buffer, bytes, length));
}

static void expect_nothing(int fd) {
    struct pollfd asked = {fd, POLLIN, 0};
    if (poll(&asked, 1, 0)) FAIL("it is readable: %#x", asked.revents);
}

// What was written arrives by a worker of the kernel's.
static void wait_readable(int fd) {
    struct pollfd asked = {fd, POLLIN, 0};
    int got;
    do got = poll(&asked, 1, 5000);
    while (got < 0 && errno == EINTR);
    CHECK_EQUAL(got, 1);
}

#endif
