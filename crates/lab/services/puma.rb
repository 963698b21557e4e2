bind 'tcp://0.0.0.0:7000'
workers 2
threads 16, 16
preload_app!
persistent_timeout 3600
rackup '@FOLDER@/count.ru'
