@echo off
rem Starts the service with the settings in .env, and keeps this window open with what it says.
pushd "%~dp0"
if exist wxopenid.exe (.\wxopenid.exe) else echo Extract the whole archive first, then start run.cmd in its folder wxopenid.
pause
