// object: inotify, watching a directory
// status: captured
// note: numbers and masks of watches are kept; a checkpoint waits until events have been read
#include "object.h"
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>

static char text[4096];

static struct inotify_event *next(int fd) {
    static int at, got;
    if (at >= got) {
        at = 0;
        got = read(fd, text, sizeof text);
        if (got <= 0) return 0;
    }
    struct inotify_event *event = (struct inotify_event *)(text + at);
    at += sizeof *event + event->len;
    return event;
}

int main(void) {
    mkdir("/tmp/watched", 0755);
    int fd = inotify_init1(IN_NONBLOCK);
    CHECK(fd >= 0);
    CHECK_EQUAL(inotify_add_watch(fd, "/tmp", IN_DELETE_SELF), 1);
    CHECK_EQUAL(inotify_add_watch(fd, "/tmp/watched", IN_CREATE | IN_DELETE | IN_OPEN | IN_CLOSE_WRITE), 2);
    ready();
    int count = 0;
    do {
        char path[64], name[32];
        snprintf(name, sizeof name, "file%d", count);
        snprintf(path, sizeof path, "/tmp/watched/%s", name);
        int made = open(path, O_CREAT | O_WRONLY, 0600);
        CHECK(made >= 0);
        close(made);
        if (count % 3) unlink(path);
        unsigned wanted[] = {IN_CREATE, IN_OPEN, IN_CLOSE_WRITE, IN_DELETE};
        for (int i = 0; i < (count % 3 ? 4 : 3); i++) {
            struct inotify_event *event = next(fd);
            CHECK(event);
            CHECK_EQUAL(event->wd, 2);
            CHECK_EQUAL(event->mask, wanted[i]);
            CHECK(!strcmp(event->name, name));
        }
        CHECK(!next(fd) && errno == EAGAIN);
        count++;
    } while (go_on());
    CHECK_EQUAL(inotify_add_watch(fd, "/run", IN_CREATE), 3);
    PASS();
}
