// object: inotify, a watch for one event (IN_ONESHOT) that has not come yet
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>

int main(void) {
    char text[4096];
    struct inotify_event *event = (struct inotify_event *)text;
    int fd = inotify_init1(IN_NONBLOCK);
    mkdir("/tmp/once", 0700);
    CHECK_EQUAL(inotify_add_watch(fd, "/tmp/once", IN_CREATE | IN_ONESHOT), 1);
    ready();
    while (go_on()) CHECK(read(fd, text, sizeof text) < 0 && errno == EAGAIN);
    mkdir("/tmp/once/a", 0700);
    mkdir("/tmp/once/b", 0700);
    CHECK(read(fd, text, sizeof text) > 0);
    CHECK_EQUAL(event->mask, IN_CREATE | IN_ISDIR);
    CHECK(!strcmp(event->name, "a"));
    event = (struct inotify_event *)(text + sizeof *event + event->len);
    CHECK_EQUAL(event->mask, IN_IGNORED);
    PASS();
}
